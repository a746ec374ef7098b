"""Versions of the packages that affect results."""

from __future__ import annotations

import importlib.metadata
import platform

from spurmix._version import __version__

PACKAGES = ("numpy", "torch", "triton", "transformers", "accelerate", "onnx", "onnxruntime", "scikit-learn")


def versions() -> dict[str, str]:
    """Return the versions of spurmix, Python and the packages it uses. A missing package is "not installed"."""
    found = {"spurmix": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
