"""Triton kernels: one module per operator, named as in `kernels/cuda` and `csrc/cpu`, and their launchers."""
