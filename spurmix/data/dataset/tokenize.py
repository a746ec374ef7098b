"""Tokenization of strings with a Hugging Face tokenizer, on all cores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from spurmix.core.progress import bar

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    TokenizerLike: TypeAlias = Tokenizer | PreTrainedTokenizerBase

CHUNK = 4096
"""Number of texts that are passed to the tokenizer in one call."""
NO_TOKENS = "has no tokens, and the tokenizer adds no special tokens"
_UNLIMITED = 1_000_000
"""Tokenizers without a limit report a very large one."""


def fast_backend(tokenizer: TokenizerLike) -> Tokenizer | None:
    """Return the `tokenizers.Tokenizer` behind a tokenizer, or None for a tokenizer written in Python.

    Raises `TypeError` if `tokenizer` is not a tokenizer of transformers or tokenizers.
    """
    candidate: Any = tokenizer
    if hasattr(candidate, "encode_batch"):
        return cast("Tokenizer", candidate)
    if not callable(candidate) or not hasattr(candidate, "get_vocab"):
        raise TypeError(f"tokenizer must be a tokenizer of transformers or tokenizers, got {type(tokenizer).__name__}")
    return cast("Tokenizer | None", getattr(candidate, "backend_tokenizer", None))


def tokenizer_fingerprint(tokenizer: TokenizerLike) -> str:
    """Return a hex digest of vocabulary and rules. Truncation and padding settings do not change it."""
    backend = fast_backend(tokenizer)
    if backend is None:
        slow: Any = tokenizer
        rules: Any = [type(slow).__name__, sorted(slow.get_vocab().items()), slow.special_tokens_map]
    else:
        rules = json.loads(backend.to_str())
        rules.update(truncation=None, padding=None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_max_length(tokenizer: TokenizerLike) -> int | None:
    """Return the maximum number of tokens of the tokenizer's model, or None if the tokenizer names none."""
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < _UNLIMITED else None


def special_ids(tokenizer: TokenizerLike) -> tuple[int, int | None]:
    """Return the padding token and the token that ends a text, or None for the latter.

    Without a padding token the result is 0, which is safe because the attention mask hides padding.
    """
    if hasattr(tokenizer, "pad_token_id"):
        known: Any = tokenizer
        pad, sep = known.pad_token_id, known.sep_token_id if known.sep_token_id is not None else known.eos_token_id
    else:
        pad, sep = (_first_known(tokenizer, names) for names in (("[PAD]", "<pad>"), ("[SEP]", "</s>")))
    return (0 if pad is None else int(pad)), sep


def padding_side(tokenizer: TokenizerLike) -> str:
    """Return the side on which a tokenizer pads texts: "right" or "left"."""
    backend = fast_backend(tokenizer)
    padding = backend.padding if backend is tokenizer and backend is not None else None
    side = padding.get("direction") if padding else getattr(tokenizer, "padding_side", None)
    return "left" if side == "left" else "right"


def splits_special_tokens(tokenizer: TokenizerLike) -> bool:
    """Whether a tokenizer tokenizes special tokens in a text, such as "[SEP]", as text."""
    backend = fast_backend(tokenizer)
    if backend is tokenizer and backend is not None:
        return backend.encode_special_tokens
    return bool(getattr(tokenizer, "split_special_tokens", False))


def _first_known(tokenizer: TokenizerLike, names: Sequence[str]) -> int | None:
    find = cast("Tokenizer", tokenizer).token_to_id
    return next((found for name in names if (found := find(name)) is not None), None)


def vocabulary_size(tokenizer: TokenizerLike) -> int:
    """Return the largest token id plus one."""
    return max(tokenizer.get_vocab().values()) + 1


def encode(
    texts: Sequence[str], tokenizer: TokenizerLike, max_length: int | None, progress: bool | None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Tokenize all texts.

    Args:
        texts: Strings.
        tokenizer: A tokenizer of transformers or tokenizers.
        max_length: Maximum number of tokens of a text. None keeps all.
        progress: Whether to show a progress bar. Default: only on a terminal.

    Returns:
        The ids of all texts, concatenated, int32 `[T]`, and offsets, int64 `[N + 1]`.

    Raises:
        TypeError: If `texts` is not a sequence of strings.
        ValueError: If there are no texts, or a text has no tokens or a lone surrogate. The message names the row.
    """
    if isinstance(texts, str) or not hasattr(texts, "__len__") or not hasattr(texts, "__getitem__"):
        raise TypeError(f"texts must be a sequence of strings, got {type(texts).__name__}")
    count = len(texts)
    if count == 0:
        raise ValueError("texts must contain at least one text, got an empty sequence")
    offsets = np.zeros(count + 1, dtype=np.int64)
    parts = []
    for start, lengths, ids in encode_chunks(
        lambda start: _chunk_of_strings(texts, start), count, tokenizer, max_length, progress
    ):
        if lengths.min() == 0:
            raise ValueError(f"texts[{start + int(lengths.argmin())}] {NO_TOKENS}; remove such texts")
        offsets[start + 1 : start + 1 + lengths.size] = lengths
        parts.append(ids)
    np.cumsum(offsets, out=offsets)
    return np.concatenate(parts), offsets


def encode_chunks(
    read_chunk: Callable[[int], list[str]],
    count: int,
    tokenizer: TokenizerLike,
    max_length: int | None,
    progress: bool | None,
    begin: int = 0,
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int32]]]:
    """Tokenize texts in chunks of `CHUNK`.

    Args:
        read_chunk: Returns the texts of the chunk that begins at a row.
        count: Number of texts.
        tokenizer: A tokenizer of transformers or tokenizers.
        max_length: Maximum number of tokens of a text. None keeps all.
        progress: Whether to show a progress bar. Default: only on a terminal.
        begin: Row to begin with, a multiple of `CHUNK`.

    Yields:
        First row of the chunk, number of tokens of each text, and their ids, concatenated.
    """
    starts = range(begin, count, CHUNK)
    if not starts:
        return
    with _encoder(tokenizer, max_length) as run, ThreadPoolExecutor(1) as pool:

        def submit(start: int) -> Future[list[list[int]]]:
            texts = read_chunk(start)

            def run_chunk() -> list[list[int]]:
                with name_invalid_text(texts, start):
                    return run(texts)

            return pool.submit(run_chunk)

        # The tokenizer releases the interpreter lock: it works on the next chunk while this one is converted.
        pending = submit(starts[0])
        shown = bar(starts, "tokenizing", total=-(-count // CHUNK), done=begin // CHUNK, size=CHUNK, shown=progress)
        for start in shown:
            rows = pending.result()
            if start + CHUNK < count:
                pending = submit(start + CHUNK)
            lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
            yield start, lengths, np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))


def encoding_error(text: str) -> str | None:
    """Return why `text` cannot be encoded as UTF-8, or None if it can. A tokenizer accepts only UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has a lone surrogate (half of a character) at position {error.start}"
    return None


@contextmanager
def name_invalid_text(texts: Sequence[str], start: int = 0) -> Iterator[None]:
    """Replace a tokenizer's error about `texts` by one that names the row, counted from `start`."""
    try:
        yield
    except Exception:  # the error type depends on the tokenizer
        for n, text in enumerate(texts):
            if (reason := encoding_error(text)) is not None:
                raise ValueError(f"texts[{start + n}] {reason}; repair or remove the text") from None
        raise


def _chunk_of_strings(texts: Sequence[str], start: int) -> list[str]:
    chunk = texts[start : start + CHUNK]
    # Arrow has to_pylist, NumPy and pandas have tolist.
    convert = getattr(chunk, "to_pylist", None) or getattr(chunk, "tolist", None)
    rows: list[str] = convert() if convert is not None else list(chunk)
    for n, row in enumerate(rows):
        if not isinstance(row, str):
            raise TypeError(f"texts[{start + n}] must be a string, got {type(row).__name__}")
    return rows


@contextmanager
def _encoder(tokenizer: TokenizerLike, max_length: int | None) -> Iterator[Callable[[list[str]], list[list[int]]]]:
    """Yield a function from strings to ids, truncated to `max_length`. The tokenizer's settings are restored."""
    backend = fast_backend(tokenizer)
    if backend is None:
        options = dict(truncation=True, max_length=max_length) if max_length is not None else {}
        slow: Any = tokenizer
        yield lambda texts: slow(texts, **options)["input_ids"]
        return
    special = backend.num_special_tokens_to_add(False)
    if max_length is not None and max_length < special:
        raise ValueError(
            f"max_length must be {special} or more, because the tokenizer adds {special} special tokens to each text, "
            f"got {max_length}"
        )
    truncation, padding, splits = backend.truncation, backend.padding, backend.encode_special_tokens
    try:
        backend.no_padding()
        backend.encode_special_tokens = splits_special_tokens(tokenizer)
        if max_length is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(max_length, direction=getattr(tokenizer, "truncation_side", "right"))
        yield lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts)]
    finally:
        backend.encode_special_tokens = splits
        if truncation is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
