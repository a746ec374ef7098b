"""Deployment: ONNX export, and a predictor that needs no torch."""
