"""Which implementation a public call uses: pinned by argument or SPURMIX_BACKEND, else the best for the device."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from spurmix.ops import library

BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")

_ops: Any = torch.ops.spurmix


def requested(backend: str) -> str:
    """`backend`, or what SPURMIX_BACKEND pins where it is "auto".

    Raises:
        ValueError: for a backend that does not exist, or a SPURMIX_CPU_ISA that this machine cannot follow.
        RuntimeError: for "cpu" and "cuda" where the compiled kernels are not there, and "triton" where Triton is not
            installed.
    """
    source = "backend"
    if backend == "auto":
        backend, source = os.environ.get("SPURMIX_BACKEND", "auto"), "SPURMIX_BACKEND"
    if backend not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "cpu" and library.COMPILED_CPU != "ok":
        raise RuntimeError(f"{source}='cpu': the compiled kernels are not in use ({library.COMPILED_CPU})")
    if backend == "cuda" and library.COMPILED_CUDA != "ok":
        raise RuntimeError(f"{source}='cuda': the compiled kernels are not in use ({library.COMPILED_CUDA})")
    if backend in ("auto", "cpu") and library.CPU_ISA_ERROR:
        raise ValueError(library.CPU_ISA_ERROR)
    if backend == "triton" and not library.HAS_TRITON:
        raise RuntimeError(f"{source}='triton' needs the package 'triton': pip install triton")
    return backend


def implementation(name: str, backend: str, device: torch.device) -> Callable[..., Any]:
    """The function that serves op `name` for tensors on `device`."""
    chosen = requested(backend)
    if chosen == "reference":
        return library.REFERENCE[name]
    if chosen == "cpu" and device.type != "cpu":
        raise ValueError(f"backend='cpu' needs tensors on the CPU, got {device}")
    if chosen == "cuda":
        if device.type != "cuda":
            raise ValueError(f"backend='cuda' needs tensors on a CUDA GPU, got {device}")
        if not library.has_cuda_kernel(name):
            raise ValueError(f"backend='cuda': {name} has no CUDA kernel; there are 'triton' and 'reference'")
    if chosen == "triton":
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError("backend='triton' needs tensors on a GPU, or TRITON_INTERPRET=1 to interpret on the CPU")
        return library.triton_kernel(name)
    return getattr(_ops, name).default


def serving(device: str = "cpu", backend: str = "auto", op: str = "draw") -> str:
    """The backend that a request means for an op on a device type: "cpu", "cuda", "triton" or "reference"."""
    chosen = requested(backend)
    if chosen != "auto":
        return chosen
    if device == "cuda" and library.has_cuda_kernel(op):
        return "cuda"
    if device == "cuda":
        return "triton" if library.HAS_TRITON else "reference"
    return "cpu" if device == "cpu" and library.COMPILED_CPU == "ok" else "reference"
