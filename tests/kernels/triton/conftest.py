"""Checks the memory accesses of all interpreted Triton kernels: see `watched.py`."""

from watched import watched_kernels  # noqa: F401  # a fixture, by its name
