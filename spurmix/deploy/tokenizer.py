"""The tokenizer beside an exported text model: strings to padded ids by the package `tokenizers` alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.data.dataset.tokenize import name_invalid_text, tokenizer_fingerprint
from spurmix.data.dataset.tokenizer_files import set_truncation

CHUNK = 64
"""Texts that are padded together."""

IdArray = NDArray[np.int64]


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[IdArray, IdArray]:
    """`rows` padded together at their ends: ids and mask (1 at tokens), int64 `[B, S]`."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return ids, mask.astype(np.int64)


class TextInput:
    """Strings to what an exported model reads.

    A text of more than `max_length` tokens is cut there, as in training; an empty one becomes its special tokens.

    Args:
        file: tokenizer.json, as `tokenizers` writes it.
        settings: what `export_onnx` stored: fingerprint, max_length, pad_id, vocab_size.

    Raises:
        ImportError: without tokenizers. ValueError: for a file that is missing, damaged or another model's.
    """

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise ImportError("text models need the package 'tokenizers': pip install 'spurmix[serve]'") from error
        if not file.is_file():
            raise ValueError(f"{file} is missing: export_onnx wrote it beside the model, it must travel along")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises plain ones
            raise ValueError(f"{file} cannot be read as a tokenizer: {error}") from None
        found = tokenizer_fingerprint(self.tokenizer)
        if found != settings["fingerprint"]:
            raise ValueError(
                f"{file} is the tokenizer of another model (fingerprint {found}, the model needs "
                f"{settings['fingerprint']})"
            )
        self.pad_id: int = settings["pad_id"]
        self.vocab_size: int = settings["vocab_size"]
        self.max_length: int | None = settings["max_length"]
        set_truncation(self.tokenizer, self.max_length, settings.get("direction", "right"))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included.

        Raises:
            TypeError: naming the row that is no string.
        """
        for n, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{n}] must be a string, got {type(text).__name__}")
        with name_invalid_text(texts):
            rows: list[list[int]] = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        for n, row in enumerate(rows):
            if not row:
                raise ValueError(f"texts[{n}] has no tokens, and the tokenizer adds no special ones")
        return rows

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[NDArray[Any], IdArray, IdArray]]:
        """(rows, ids, mask) of at most 64 texts of similar length at a time."""
        rows = self.encode(texts)
        order = np.argsort([len(row) for row in rows], kind="stable")
        for start in range(0, len(rows), CHUNK):
            chosen = order[start : start + CHUNK]
            yield chosen, *pad([rows[k] for k in chosen], self.pad_id)
