"""Reads the tokenizer next to an exported text model and converts strings to padded ids, without torch or transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from spurmix.data.dataset.tokenize import name_invalid_text, tokenizer_fingerprint
from spurmix.data.dataset.tokenizer_files import set_truncation

CHUNK = 64
"""Maximum number of texts that are padded together."""

IdArray = NDArray[np.int64]


class TextSettings(TypedDict):
    """Tokenizer settings that `export_onnx` stores in a text model.

    Attributes:
        fingerprint: Fingerprint of the tokenizer.
        max_length: Maximum number of tokens of a text. None means no limit.
        direction: Side on which longer texts are truncated, "left" or "right". Default: "right".
        pad_id: Id that fills shorter texts.
        padding_side: Side on which shorter texts are padded, "left" or "right". Default: "right".
        vocab_size: Number of token ids.
        split_special_tokens: Whether special tokens in a text, such as "[SEP]", are tokenized as text. Default: False.
    """

    fingerprint: str
    max_length: int | None
    direction: NotRequired[str]
    pad_id: int
    padding_side: NotRequired[str]
    vocab_size: int
    split_special_tokens: NotRequired[bool]


def widen(ids: IdArray, mask: IdArray, pad_id: int, side: str) -> tuple[IdArray, IdArray]:
    """Pad ids and mask `[B, 1]` to `[B, 2]`. The exporter assumes two tokens or more."""
    if ids.shape[1] > 1:
        return ids, mask
    width = ((0, 0), (0, 1) if side == "right" else (1, 0))
    return np.pad(ids, width, constant_values=pad_id), np.pad(mask, width)


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str = "right") -> tuple[IdArray, IdArray]:
    """Pad rows to the same length S.

    Args:
        rows: Token ids of each text.
        pad_id: Id that fills shorter rows.
        side: Side on which rows are padded, "left" or "right".

    Returns:
        Ids and mask, int64 `[B, S]`, S at least 2. The mask is 1 at tokens and 0 at padding.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    width = lengths.max()
    mask = np.arange(width) < lengths[:, None] if side == "right" else np.arange(width) >= width - lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return widen(ids, mask.astype(np.int64), pad_id, side)


class TextInput:
    """Converts strings to the inputs of an exported text model.

    A text of more than `max_length` tokens is truncated, as in training. An empty text becomes its special tokens.

    Args:
        file: `tokenizer.json`, as the package tokenizers writes it.
        settings: Settings stored in the model.
        text: Contents of the file. Default: they are read.

    Raises:
        ImportError: If the package tokenizers is not installed.
        ValueError: If the file is missing, corrupt or another model's.
    """

    def __init__(self, file: Path, settings: TextSettings, text: str | None = None) -> None:
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise ImportError("text models need the package 'tokenizers': pip install 'spurmix[serve]'") from error
        if text is None and not file.is_file():
            raise ValueError(f"{file} is missing; copy it from the folder that export_onnx wrote the model to")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8") if text is None else text)
        except Exception as error:  # tokenizers raises plain exceptions
            raise ValueError(f"{file} cannot be read as a tokenizer: {error}") from None
        found = tokenizer_fingerprint(self.tokenizer)
        if found != settings["fingerprint"]:
            raise ValueError(
                f"{file} is the tokenizer of another model: its fingerprint is {found}, the model needs "
                f"{settings['fingerprint']}; copy the file from the folder that export_onnx wrote the model to"
            )
        self.pad_id = settings["pad_id"]
        self.padding_side = settings.get("padding_side", "right")
        self.vocab_size = settings["vocab_size"]
        self.max_length = settings["max_length"]
        set_truncation(self.tokenizer, self.max_length, settings.get("direction", "right"))
        self.tokenizer.encode_special_tokens = settings.get("split_special_tokens", False)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts.

        Args:
            texts: Strings.

        Returns:
            Token ids of each text, special tokens included.

        Raises:
            TypeError: If an element is not a string.
            ValueError: If a text has no tokens or cannot be encoded as UTF-8. The message names the row.
        """
        for n, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{n}] must be a string, got {type(text).__name__}")
        with name_invalid_text(texts):
            rows: list[list[int]] = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        for n, row in enumerate(rows):
            if not row:
                raise ValueError(f"texts[{n}] has no tokens, and the tokenizer adds no special tokens; remove the text")
        return rows

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[NDArray[np.intp], IdArray, IdArray]]:
        """Tokenize texts and pad texts of similar length together.

        Args:
            texts: Strings.

        Yields:
            Row numbers of at most 64 texts, and their ids and mask, int64 `[B, S]`.
        """
        rows = self.encode(texts)
        order = np.argsort([len(row) for row in rows], kind="stable")
        for start in range(0, len(rows), CHUNK):
            chosen = order[start : start + CHUNK]
            yield chosen, *pad([rows[k] for k in chosen], self.pad_id, self.padding_side)
