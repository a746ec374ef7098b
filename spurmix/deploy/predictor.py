"""Predictor: runs an exported model with ONNX Runtime and NumPy, without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spurmix.core import checks
from spurmix.core.deprecation import warn_renamed
from spurmix.core.names import shown
from spurmix.data.dataset.tokenizer_files import TOKENIZER_FILE
from spurmix.deploy.file_metadata import parse_metadata
from spurmix.deploy.model_file import read_model_file
from spurmix.deploy.tokenizer import TextInput, TextSettings, widen

if TYPE_CHECKING:
    import onnxruntime

PredictorInput: TypeAlias = ArrayLike | Sequence[str] | Mapping[str, ArrayLike]
"""Images or features, strings, or token ids and attention mask by name."""

LogitArray = NDArray[np.float32]

MAX_THREADS = 1024
"""Maximum number of threads of ONNX Runtime, which creates all of them at once."""


def __getattr__(name: str) -> str:
    if name != "FILE":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_renamed(__name__, "FILE", "TOKENIZER_FILE")
    return TOKENIZER_FILE


class Predictor:
    """Runs a model that `export_onnx` wrote.

    Args:
        path: The `.onnx` file. A text model needs `tokenizer.json` in the same folder, and a model of more than 2 GiB its
            `.data` file.
        threads: Number of threads of ONNX Runtime, at most 1024. Default: the choice of ONNX Runtime.
        providers: Execution providers of ONNX Runtime. Default: the CPU.

    Attributes:
        classes: Name of each class.
        report: Accuracy of the model per group at export, as JSON types.
        metadata: Metadata of the file whose names start with `spurmix.`, as JSON types.
        shape: Shape of one example: (H, W, C) or (D,), and () for a text model.
        text: Tokenizer of a text model, or None.

    Raises:
        ImportError: If onnxruntime is not installed, or tokenizers for a text model.
        ValueError: If the file does not exist, is not a model that `export_onnx` wrote, was changed after the export, or
            has another model's tokenizer, or if ONNX Runtime does not use the given providers or number of threads.

    Example:
        >>> predictor = Predictor("model.onnx")  # doctest: +SKIP
        >>> predictor.classes[predictor.predict(images)[0].argmax()]  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ImportError("Predictor needs the package 'onnxruntime': pip install 'spurmix[serve]'") from error
        if not os.path.isfile(checks.path(path, "path")):  # False for a name that is too long
            raise ValueError(f"path: there is no file {path}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = checks.integer(threads, "threads", 1, MAX_THREADS)
        chosen = ("CPUExecutionProvider",) if providers is None else checks.strings(providers, "providers")
        available = onnxruntime.get_available_providers()
        missing = [name for name in chosen if name not in available]
        if missing or not chosen:
            raise ValueError(f"providers must be some of {', '.join(available)}, got {', '.join(missing) or 'none'}")
        self._path = path = Path(path)
        stored = read_model_file(path)
        stored.check(path)
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=list(chosen))
        except Exception as error:  # the errors of onnxruntime share no base class
            raise ValueError(f"{path} cannot be loaded as an ONNX model: {error}") from None
        _check_session(self.session, chosen, threads)
        found = parse_metadata(path, stored.metadata)
        self.metadata, self.classes, self.report = found.entries, found.classes, found.report
        self.text = self._open_tokenizer(found.text) if found.text is not None else None
        _check_inputs(path, self.session, len(self.classes), ("input_ids", "attention_mask") if self.text else ())
        self._input = self.session.get_inputs()[0]
        self.shape: tuple[int, ...] = tuple(self._input.shape[1:]) if self.text is None else ()
        self._dtype = np.uint8 if "uint8" in self._input.type else np.float32

    def _open_tokenizer(self, settings: TextSettings) -> TextInput:
        return TextInput(self._path.parent / TOKENIZER_FILE, settings)

    def predict(self, inputs: PredictorInput) -> LogitArray:
        """Compute logits.

        A text of more tokens than the model was trained with is truncated. An empty text becomes its special tokens.

        Args:
            inputs: Images, uint8 `[B, H, W, C]`, or features, float32 `[B, D]`. For a text model strings `[B]`, or a dict
                of "input_ids" and "attention_mask", integers `[B, S]`. The mask is 1 at tokens and 0 at padding.

        Returns:
            Logits, float32 `[B, classes]`.

        Raises:
            TypeError: If the dtype is wrong, or an element is not a string.
            ValueError: If the shape is wrong, or a text has no tokens.
            IndexError: If an id is outside the vocabulary.
            RuntimeError: If ONNX Runtime fails.
        """
        if self.text is not None:
            return self._predict_tokens(inputs) if isinstance(inputs, Mapping) else self._predict_texts(inputs)
        array = _as_array(inputs, "inputs")
        if array.dtype != self._dtype:
            raise TypeError(f"inputs must have dtype {np.dtype(self._dtype).name}, got {array.dtype}")
        if array.ndim != 1 + len(self.shape) or array.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"inputs must have shape [B, {expected}], got {list(array.shape)}")
        if array.shape[0] == 0:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        return self._run({self._input.name: np.ascontiguousarray(array)})

    def _run(self, inputs: dict[str, NDArray[Any]]) -> LogitArray:
        """Run the model on a batch of one example or more."""
        try:
            logits = self.session.run(None, inputs)[0]
        except Exception as error:  # the errors of onnxruntime share no base class
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise RuntimeError(f"{self._path}: ONNX Runtime cannot compute logits of {shapes}: {error}") from None
        expected = (len(next(iter(inputs.values()))), len(self.classes))
        if logits.shape != expected:
            raise RuntimeError(
                f"{self._path}: the model computes {list(logits.shape)} logits instead of {list(expected)}"
            )
        return logits.astype(np.float32, copy=False)

    def _predict_texts(self, inputs: ArrayLike | Sequence[str]) -> LogitArray:
        assert self.text is not None
        if isinstance(inputs, (str, bytes)) or not (hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")):
            raise TypeError(f"inputs must be a sequence of strings, got {type(inputs).__name__}")
        texts = cast("Sequence[str]", inputs)  # each element is checked by `batches`
        logits = np.empty((len(texts), len(self.classes)), dtype=np.float32)
        for rows, ids, mask in self.text.batches(texts):
            logits[rows] = self._run({"input_ids": ids, "attention_mask": mask})
        return logits

    def _predict_tokens(self, inputs: Mapping[str, ArrayLike]) -> LogitArray:
        assert self.text is not None
        names = ("input_ids", "attention_mask")
        if set(inputs) != set(names):
            raise ValueError(f"inputs must have the entries {' and '.join(names)}, got {', '.join(map(str, inputs))}")
        ids, mask = (_as_array(inputs[name], name) for name in names)
        for name, array in zip(names, (ids, mask), strict=True):
            if array.dtype.kind not in "iub":
                raise TypeError(f"{name} must be integers, got {array.dtype}")
            if array.ndim != 2 or array.shape != ids.shape:
                raise ValueError(f"{name} must have shape [B, S], the same for both, got {list(array.shape)}")
        if len(ids) == 0:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        if not np.isin(mask, (0, 1)).all():
            raise ValueError(f"attention_mask must be 0 or 1, got values from {mask.min()} to {mask.max()}")
        if not mask.any(axis=1).all():
            row = int(mask.any(axis=1).argmin())
            raise ValueError(f"attention_mask[{row}] has no 1: the text has no tokens; remove the text")
        if self.text.max_length is not None and ids.shape[1] > self.text.max_length:
            raise ValueError(f"input_ids must have at most {self.text.max_length} tokens per text, got {ids.shape[1]}")
        if not 0 <= ids.min() <= ids.max() < self.text.vocab_size:
            raise IndexError(f"input_ids must be in [0, {self.text.vocab_size}), got {ids.min()} to {ids.max()}")
        ids, mask = widen(ids.astype(np.int64), mask.astype(np.int64), self.text.pad_id, self.text.padding_side)
        return self._run({"input_ids": ids, "attention_mask": mask})

    def predict_proba(self, inputs: PredictorInput) -> LogitArray:
        """Compute class probabilities, the softmax of the logits.

        Args:
            inputs: As for `predict`.

        Returns:
            Probabilities, float32 `[B, classes]`.
        """
        logits = self.predict(inputs)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)


def _as_array(values: object, name: str) -> NDArray[Any]:
    """Return `values` as an array.

    Raises TypeError if NumPy cannot convert them, and ValueError if rows have different lengths.
    """
    try:
        return np.asarray(values)
    except (TypeError, RuntimeError) as error:  # such as a tensor of bfloat16, on a GPU, or that requires a gradient
        problem = shown(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise TypeError(f"{name} cannot be converted to a NumPy array: {problem}; convert them first") from None
    except ValueError as error:
        raise ValueError(f"{name} must be an array, or sequences of the same length ({error})") from None


def _check_session(session: onnxruntime.InferenceSession, providers: Sequence[str], threads: int | None) -> None:
    """Check that ONNX Runtime uses the given providers and threads. It ignores a provider that cannot be loaded."""
    used = session.get_providers()
    missing = [name for name in providers if name not in used]
    if missing:
        raise ValueError(
            f"providers: ONNX Runtime could not load {', '.join(missing)} and uses {', '.join(used)}; install what the "
            "provider requires, or choose another one"
        )
    number = session.get_session_options().intra_op_num_threads
    if threads is not None and number != threads:
        raise ValueError(f"threads: ONNX Runtime uses {number} threads, {threads} were requested; leave out threads")


def _check_inputs(path: Path, session: onnxruntime.InferenceSession, classes: int, names: tuple[str, ...]) -> None:
    """Check that inputs and output of a model are those of an exported file."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = tuple(one.name for one in inputs)
    ranks = all(len(one.shape) == 2 for one in inputs) if names else len(inputs) == 1 and len(inputs[0].shape) in (2, 4)
    fixed = all(isinstance(size, int) for one in inputs for size in one.shape[1:]) or bool(names)
    types = {one.type for one in inputs} <= ({"tensor(int64)"} if names else {"tensor(uint8)", "tensor(float)"})
    if (names and found != names) or not (ranks and fixed and types):
        described = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise ValueError(f"{path} has other inputs than exported models: {described}; export the model again")
    if len(outputs) != 1 or len(outputs[0].shape) != 2 or outputs[0].shape[1] not in (classes, None):
        described = ", ".join(f"{one.name} {one.shape}" for one in outputs)
        raise ValueError(
            f"{path} has other outputs than logits of {classes} classes: {described}; export the model again"
        )
