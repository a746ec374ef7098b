"""Packing images and texts into datasets."""
