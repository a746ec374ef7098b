"""Checks the memory accesses of all interpreted Triton kernels: see `tests/kernels/triton/watched.py`."""

from watched import watched_kernels  # noqa: F401  # a fixture, by its name
