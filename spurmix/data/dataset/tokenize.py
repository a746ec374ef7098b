"""Strings to ragged token ids through a Hugging Face tokenizer, on all cores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core.progress import bar

CHUNK = 4096
"""Texts that are handed to the tokenizer at a time."""
NO_TOKENS = "has no tokens, and the tokenizer adds no special ones"
_UNLIMITED = 1_000_000
"""Tokenizers without a limit state a very large one."""


def _backend(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` in `tokenizer`, or None in one of Python."""
    if hasattr(tokenizer, "encode_batch"):
        return tokenizer
    if not callable(tokenizer) or not hasattr(tokenizer, "get_vocab"):
        raise TypeError(f"tokenizer must be one of transformers or tokenizers, got {type(tokenizer).__name__}")
    return getattr(tokenizer, "backend_tokenizer", None)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hex digest of a tokenizer: equal for equal vocabularies and rules, whatever truncation or padding it is set to."""
    backend = _backend(tokenizer)
    if backend is None:
        rules: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map]
    else:
        rules = json.loads(backend.to_str())
        rules.update(truncation=None, padding=None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_max_length(tokenizer: Any) -> int | None:
    """The tokens that the tokenizer says its model takes, or None."""
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < _UNLIMITED else None


def special_ids(tokenizer: Any) -> tuple[int, int | None]:
    """(padding token, token that closes a text or None); 0 pads where the tokenizer has none: the mask hides it."""
    if hasattr(tokenizer, "pad_token_id"):
        pad = tokenizer.pad_token_id
        sep = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    else:
        pad, sep = (_first_known(tokenizer, names) for names in (("[PAD]", "<pad>"), ("[SEP]", "</s>")))
    return (0 if pad is None else int(pad)), sep


def _first_known(tokenizer: Any, names: Sequence[str]) -> int | None:
    return next((found for name in names if (found := tokenizer.token_to_id(name)) is not None), None)


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest id the tokenizer gives."""
    return max(tokenizer.get_vocab().values()) + 1


def encode(
    texts: Sequence[str], tokenizer: Any, max_length: int | None, progress: bool | None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Ids of all texts in a row, int32 `[T]`, and offsets, int64 `[N + 1]`."""
    if isinstance(texts, str) or not hasattr(texts, "__len__") or not hasattr(texts, "__getitem__"):
        raise TypeError(f"texts must be a sequence of strings, got {type(texts).__name__}")
    count = len(texts)
    if count == 0:
        raise ValueError("texts: the dataset is empty, need at least one text")
    offsets = np.zeros(count + 1, dtype=np.int64)
    parts = []
    for start, sizes, ids in encode_chunks(
        lambda start: _strings(texts, start), count, tokenizer, max_length, progress
    ):
        if sizes.min() == 0:
            raise ValueError(f"texts[{start + int(sizes.argmin())}]: {NO_TOKENS}; leave such texts out")
        offsets[start + 1 : start + 1 + sizes.size] = sizes
        parts.append(ids)
    np.cumsum(offsets, out=offsets)
    return np.concatenate(parts), offsets


def encode_chunks(
    strings: Callable[[int], list[str]],
    count: int,
    tokenizer: Any,
    max_length: int | None,
    progress: bool | None,
    begin: int = 0,
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int32]]]:
    """(its first text, tokens of each text, ids int32 in a row) of every chunk of `CHUNK` texts, from text `begin` on;
    `strings(start)` gives the texts of the chunk that begins there."""
    starts = range(begin, count, CHUNK)
    if not starts:
        return
    with _encoder(tokenizer, max_length) as run, ThreadPoolExecutor(1) as pool:

        def work(start: int) -> Future[list[list[int]]]:
            texts = strings(start)

            def encoded() -> list[list[int]]:
                with named(texts, start):
                    return run(texts)

            return pool.submit(encoded)

        # The tokenizer holds no lock while it works: the next chunk is in work while this one is packed.
        pending = work(starts[0])
        made = bar(starts, "tokenising", total=-(-count // CHUNK), done=begin // CHUNK, size=CHUNK, shown=progress)
        for start in made:
            rows = pending.result()
            if start + CHUNK < count:
                pending = work(start + CHUNK)
            sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
            yield start, sizes, np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(sizes.sum()))


def unreadable(text: str) -> str | None:
    """Why no tokenizer can read `text`, or None where it can: half of a surrogate pair is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has a lone surrogate at character {error.start}, which is half of a character"
    return None


@contextmanager
def named(texts: Sequence[str], start: int = 0) -> Iterator[None]:
    """Turn a tokenizer's error about `texts`, which names no text, into one about the row, counted from `start`."""
    try:
        yield
    except Exception:
        for n, text in enumerate(texts):
            if (reason := unreadable(text)) is not None:
                raise ValueError(f"texts[{start + n}]: {reason}; mend it or leave it out") from None
        raise


def _strings(texts: Sequence[str], start: int) -> list[str]:
    chunk = texts[start : start + CHUNK]
    convert = getattr(chunk, "to_pylist", None) or getattr(chunk, "tolist", None)  # of Arrow, of NumPy and pandas
    rows: list[str] = convert() if convert is not None else list(chunk)
    for n, row in enumerate(rows):
        if not isinstance(row, str):
            raise TypeError(f"texts[{start + n}] must be a string, got {type(row).__name__}")
    return rows


@contextmanager
def _encoder(tokenizer: Any, max_length: int | None) -> Iterator[Callable[[list[str]], list[list[int]]]]:
    """A function from strings to lists of ids, shortened to `max_length`; the tokenizer is left as it was."""
    backend = _backend(tokenizer)
    if backend is None:
        cut = dict(truncation=True, max_length=max_length) if max_length is not None else {}
        yield lambda texts: tokenizer(texts, **cut)["input_ids"]
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        backend.no_padding()
        if max_length is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(max_length, direction=getattr(tokenizer, "truncation_side", "right"))
        yield lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts)]
    finally:
        if truncation is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
