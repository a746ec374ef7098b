"""Predictor: runs an exported file with ONNX Runtime and NumPy; torch is never imported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Predictor:
    """A model that `export_onnx` wrote.

    Args:
        path: the `.onnx` file.
        threads: of ONNX Runtime; default: its own choice.
        providers: execution providers; default: the CPU.

    Attributes:
        classes: class names. report: per-group accuracy proven on this file. metadata: everything stored in it.
        shape: what an example must look like, (H, W, C) or (D,).

    Raises:
        ImportError: without onnxruntime. ValueError: for a file that is no model, or not one of ours.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ImportError("Predictor needs the package 'onnxruntime': pip install 'spurmix[serve]'") from error
        if not Path(path).is_file():
            raise ValueError(f"path: there is no file {path}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=list(providers or ["CPUExecutionProvider"])
            )
        except Exception as error:  # onnxruntime's errors share no base class
            raise ValueError(f"{path} cannot be loaded as an ONNX model: {error}") from None
        stored = self.session.get_modelmeta().custom_metadata_map
        if "spurmix.version" not in stored:
            raise ValueError(f"{path} was not written by spurmix.export_onnx")
        self.metadata: dict[str, Any] = {name: json.loads(value) for name, value in stored.items()}
        self.classes: list[str] = self.metadata["spurmix.classes"]
        self.report: dict[str, Any] = self.metadata["spurmix.report"]
        self._input = self.session.get_inputs()[0]
        self.shape: tuple[int, ...] = tuple(self._input.shape[1:])
        self._dtype = np.uint8 if "uint8" in self._input.type else np.float32

    def predict(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Logits float32 `[B, classes]` of uint8 images `[B, H, W, C]` (float32 features `[B, D]`).

        Raises:
            TypeError: for another dtype. ValueError: for another shape.
        """
        array = np.asarray(inputs)
        if array.dtype != self._dtype:
            raise TypeError(f"inputs must have dtype {np.dtype(self._dtype).name}, got {array.dtype}")
        if array.ndim != 1 + len(self.shape) or array.shape[1:] != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"inputs must have shape [B, {wanted}], got {list(array.shape)}")
        if array.shape[0] == 0:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        return self.session.run(None, {self._input.name: np.ascontiguousarray(array)})[0]

    def predict_proba(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Class probabilities `[B, classes]`: the softmax of `predict`."""
        logits = self.predict(inputs)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)
