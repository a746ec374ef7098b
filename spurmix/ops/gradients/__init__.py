"""Gradients of the operators."""
