"""Choice of the backend of a call: the argument `backend`, else SPURMIX_BACKEND, else the fastest for the device."""

from __future__ import annotations

import os

import torch

from spurmix.ops import library

_OPS = torch.ops.spurmix

BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")


def requested(backend: str) -> str:
    """Return `backend`, or SPURMIX_BACKEND if it is "auto".

    Raises ValueError if there is no such backend, or the CPU does not support SPURMIX_CPU_ISA, and RuntimeError if the
    compiled kernels of "cpu" or "cuda" are not available, or Triton is not installed.
    """
    source = "backend"
    if backend == "auto":
        backend, source = os.environ.get("SPURMIX_BACKEND", "auto"), "SPURMIX_BACKEND"
    if backend not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "cpu" and library.COMPILED_CPU != "ok":
        raise RuntimeError(f"{source}='cpu': the compiled kernels are not available ({library.COMPILED_CPU})")
    if backend == "cuda" and library.COMPILED_CUDA != "ok":
        raise RuntimeError(f"{source}='cuda': the compiled kernels are not available ({library.COMPILED_CUDA})")
    if backend in ("auto", "cpu") and library.CPU_ISA_ERROR:
        raise ValueError(library.CPU_ISA_ERROR)
    if backend == "triton" and not library.HAS_TRITON:
        raise RuntimeError(f"{source}='triton' requires the package triton; run: pip install triton")
    return backend


def implementation(name: str, backend: str, device: torch.device) -> library.Kernel:
    """Return the function that runs operator `name` for tensors on `device`.

    Raises ValueError if there is no such backend, or it does not support the device, and RuntimeError if the backend
    is not available.
    """
    chosen = requested(backend)
    if chosen == "auto":
        return getattr(_OPS, name).default
    if chosen == "reference":
        return library.OPERATORS[name].reference
    if chosen == "triton":
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                "backend='triton' requires tensors on a GPU, or TRITON_INTERPRET=1 to interpret on the CPU"
            )
        return library.triton_kernel(name)
    if chosen == "cpu" and device.type != "cpu":
        raise ValueError(f"backend='cpu' requires tensors on the CPU, got {device}")
    if chosen == "cuda" and device.type != "cuda":
        raise ValueError(f"backend='cuda' requires tensors on a CUDA GPU, got {device}")
    return getattr(_OPS, name).default


def serving(device: str = "cpu", backend: str = "auto") -> str:
    """Return the backend that runs a call on a device type: "cpu", "cuda", "triton" or "reference"."""
    chosen = requested(backend)
    if chosen != "auto":
        return chosen
    if device == "cuda" and library.COMPILED_CUDA == "ok":
        return "cuda"
    if device == "cuda":
        return "triton" if library.HAS_TRITON else "reference"
    return "cpu" if device == "cpu" and library.COMPILED_CPU == "ok" else "reference"
