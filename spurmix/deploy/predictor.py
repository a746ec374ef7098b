"""Predictor: runs an exported file with ONNX Runtime and NumPy; torch is never imported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.data.dataset.tokenizer_files import TOKENIZER_FILE
from spurmix.deploy.tokenizer import TextInput


class Predictor:
    """A model that `export_onnx` wrote.

    Args:
        path: the `.onnx` file; a text model's tokenizer.json lies beside it.
        threads: of ONNX Runtime; default: its own choice.
        providers: execution providers; default: the CPU.

    Attributes:
        classes: class names. report: per-group accuracy proven on this file. metadata: everything stored in it.
        shape: what an example must look like, (H, W, C) or (D,); () of a text model.
        text: how a text model reads strings, else None.

    Raises:
        ImportError: without onnxruntime, or tokenizers for a text model.
        ValueError: for a file that is no model, or not one of ours, or a tokenizer that is not this model's.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ImportError("Predictor needs the package 'onnxruntime': pip install 'spurmix[serve]'") from error
        if not checks.path(path, "path").is_file():
            raise ValueError(f"path: there is no file {path}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = checks.integer(threads, "threads", 1)
        chosen = ("CPUExecutionProvider",) if providers is None else checks.strings(providers, "providers")
        absent = [name for name in chosen if name not in onnxruntime.get_available_providers()]
        if absent or not chosen:
            there = ", ".join(onnxruntime.get_available_providers())
            raise ValueError(f"providers must be some of {there}, got {', '.join(absent) or 'none'}")
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=list(chosen))
        except Exception as error:  # onnxruntime's errors share no base class
            raise ValueError(f"{path} cannot be loaded as an ONNX model: {error}") from None
        stored = self.session.get_modelmeta().custom_metadata_map
        if "spurmix.version" not in stored:
            raise ValueError(f"{path} was not written by spurmix.export_onnx")
        self.metadata: dict[str, Any] = {name: json.loads(value) for name, value in stored.items()}
        self.classes: list[str] = self.metadata["spurmix.classes"]
        self.report: dict[str, Any] = self.metadata["spurmix.report"]
        self._input = self.session.get_inputs()[0]
        settings = self.metadata.get("spurmix.text")
        self.text = TextInput(Path(path).parent / TOKENIZER_FILE, settings) if settings is not None else None
        self.shape: tuple[int, ...] = tuple(self._input.shape[1:]) if self.text is None else ()
        self._dtype = np.uint8 if "uint8" in self._input.type else np.float32

    def predict(self, inputs: Any) -> NDArray[np.float32]:
        """Logits float32 `[B, classes]` of uint8 images `[B, H, W, C]`, float32 features `[B, D]`, or a text model's
        strings `[B]` (or {"input_ids", "attention_mask"}, integers `[B, S]`).

        Texts of more tokens than the model was trained on are cut there; an empty text is its special tokens.

        Raises:
            TypeError: for another dtype. ValueError: for another shape. IndexError: for ids beyond the vocabulary.
        """
        if self.text is not None:
            return self._predict_tokens(inputs) if isinstance(inputs, Mapping) else self._predict_texts(inputs)
        array = np.asarray(inputs)
        if array.dtype != self._dtype:
            raise TypeError(f"inputs must have dtype {np.dtype(self._dtype).name}, got {array.dtype}")
        if array.ndim != 1 + len(self.shape) or array.shape[1:] != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"inputs must have shape [B, {wanted}], got {list(array.shape)}")
        if array.shape[0] == 0:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        return self.session.run(None, {self._input.name: np.ascontiguousarray(array)})[0]

    def _predict_texts(self, texts: Any) -> NDArray[np.float32]:
        assert self.text is not None
        if isinstance(texts, (str, bytes)) or not hasattr(texts, "__len__"):
            raise TypeError(f"inputs must be a sequence of strings, got {type(texts).__name__}")
        logits = np.empty((len(texts), len(self.classes)), dtype=np.float32)
        for rows, ids, mask in self.text.batches(texts):
            logits[rows] = self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return logits

    def _predict_tokens(self, inputs: Mapping[str, Any]) -> NDArray[np.float32]:
        assert self.text is not None
        names = ("input_ids", "attention_mask")
        if set(inputs) != set(names):
            raise ValueError(f"inputs must have the entries {' and '.join(names)}, got {', '.join(map(str, inputs))}")
        ids, mask = (np.asarray(inputs[name]) for name in names)
        for name, array in zip(names, (ids, mask), strict=True):
            if array.dtype.kind not in "iub":
                raise TypeError(f"{name} must hold integers, got {array.dtype}")
            if array.ndim != 2 or array.shape != ids.shape:
                raise ValueError(f"{name} must have shape [B, S], both the same, got {list(array.shape)}")
        if ids.size == 0:
            return np.empty((len(ids), len(self.classes)), dtype=np.float32)
        if self.text.max_length is not None and ids.shape[1] > self.text.max_length:
            raise ValueError(f"input_ids: {ids.shape[1]} tokens, the model takes at most {self.text.max_length}")
        if not 0 <= ids.min() <= ids.max() < self.text.vocab_size:
            raise IndexError(f"input_ids must lie in [0, {self.text.vocab_size}), got {ids.min()} to {ids.max()}")
        return self.session.run(None, {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)})[0]

    def predict_proba(self, inputs: Any) -> NDArray[np.float32]:
        """Class probabilities `[B, classes]`: the softmax of `predict`."""
        logits = self.predict(inputs)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)
