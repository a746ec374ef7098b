"""TokenSource: texts of different lengths as token ids. The loader pads both texts of each pair together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.array_types import Int64Array, IntArray
from spurmix.core.cells import as_integers, host_module
from spurmix.data.batch import Tokens
from spurmix.data.dataset import tokenize
from spurmix.data.sources import padding
from spurmix.data.sources.padding import positions
from spurmix.data.sources.tiers import Tier, repr_suffix
from spurmix.ops import validate

if TYPE_CHECKING:
    from spurmix.data.dataset.tokenize import TokenizerLike

IdArray: TypeAlias = NDArray[np.int32]
IntegersLike: TypeAlias = Tensor | IntArray | Sequence[int]


class TokenOptions(TypedDict, total=False):
    """Keyword arguments of `TokenSource`."""

    vocab_size: int | None
    pad_id: int
    sep_id: int | None
    max_length: int | None
    pad_multiple: int
    tokenizer: TokenizerLike | str | None
    padding_side: str | None


class TokenSource:
    """Texts as token ids. Text n is ``ids[offsets[n]:offsets[n + 1]]``, special tokens included.

    Every text has at least one token. An empty string consists of its special tokens.

    Args:
        ids: Token ids of all texts, concatenated, integers `[T]`: an array, memory map or CPU tensor. int32 is not copied.
        offsets: Begin of each text in `ids` and end of the last one, integers `[N + 1]`, strictly ascending. int64 is not
            copied.
        vocab_size: Number of token ids. All ids must be in [0, vocab_size). Default: the largest id plus 1.
        pad_id: Id that pads shorter texts. The attention mask is False there.
        sep_id: Id of the token that ends a text, such as [SEP] of BERT. If a text that ends with it is truncated, its last
            remaining token is replaced by it.
        max_length: Maximum number of tokens of a text, and maximum width of a batch. Longer texts are truncated. Default:
            no limit.
        pad_multiple: Batches are padded to a multiple of this, but not beyond `max_length`. 8 suits tensor cores.
        tokenizer: The tokenizer that made the ids, or its `tokenizer_fingerprint`. Default: unknown.
        padding_side: Side on which texts are padded, "right" or "left". Default: that of the tokenizer, or else "right".

    Attributes:
        ids: Token ids, int32 `[T]`.
        offsets: Offsets, int64 `[N + 1]`.
        longest: Number of tokens of the longest text, after truncation.
        tier: Where the tokens of a packed dataset are read from, and why.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a text has no tokens, an id is outside the vocabulary, or offsets do not ascend or exceed the ids.
            The message names the row.

    Example:
        >>> source = TokenSource.from_texts(["good movie", "bad movie"], tokenizer)  # doctest: +SKIP
        >>> loader = MixLoader(source, groups, policies.mixup(), 32)  # doctest: +SKIP
    """

    tier: Tier | None = None

    def __init__(
        self,
        ids: IntegersLike,
        offsets: IntegersLike,
        *,
        vocab_size: int | None = None,
        pad_id: int = 0,
        sep_id: int | None = None,
        max_length: int | None = None,
        pad_multiple: int = 8,
        tokenizer: TokenizerLike | str | None = None,
        padding_side: str | None = None,
    ) -> None:
        self.pad_id, self.sep_id = checks.integer(pad_id, "pad_id", 0), _optional(sep_id, "sep_id", 0)
        self.max_length = _optional(max_length, "max_length", 1)
        self.pad_multiple = checks.integer(pad_multiple, "pad_multiple", 1)
        vocab_size = _optional(vocab_size, "vocab_size", 1)
        self.offsets = _checked_offsets(offsets)
        self.ids = _checked_ids(ids, self.offsets, vocab_size)
        if vocab_size is not None and not max(pad_id, sep_id or 0) < vocab_size:
            raise ValueError(
                f"pad_id and sep_id must be in the vocabulary, [0, {vocab_size}), got pad_id={pad_id} and sep_id={sep_id}"
            )
        self.vocab_size = vocab_size if vocab_size is not None else max(int(self.ids.max()), self.pad_id) + 1
        whole = int(np.diff(self.offsets).max())
        self.longest = whole if self.max_length is None else min(whole, self.max_length)
        self.tokenizer_fingerprint = _fingerprint_of(tokenizer)
        known = tokenizer is not None and not isinstance(tokenizer, str)
        default = tokenize.padding_side(tokenizer) if known else "right"
        self.padding_side = padding.check_side(padding_side if padding_side is not None else default)

    @classmethod
    def from_lists(cls, texts: Iterable[IntegersLike], **options: Unpack[TokenOptions]) -> TokenSource:
        """Make a source from the token ids of each text.

        Args:
            texts: A list, array or tensor of integers for each text.
            **options: Keyword arguments of `TokenSource`.

        Returns:
            The source.

        Raises:
            TypeError: If a text is not a sequence of integers.
            ValueError: If there are no texts, a text has no tokens, or an option is invalid.
        """
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise TypeError(f"texts must be a sequence of token ids of each text, got {type(texts).__name__}")
        rows = [as_integers(row, f"texts[{n}]", (1,)) for n, row in enumerate(texts)]
        if not rows:
            raise ValueError("texts must contain at least one text, got an empty sequence")
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([row.size for row in rows], out=offsets[1:])
        return cls(np.concatenate(rows), offsets, **options)

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        tokenizer: TokenizerLike,
        *,
        max_length: int | None = None,
        pad_multiple: int = 8,
        progress: bool | None = None,
    ) -> TokenSource:
        """Tokenize strings with a Hugging Face tokenizer, on all cores.

        The ids are those of ``tokenizer(text, truncation=True, max_length=max_length)``. Padding id, closing token and
        vocabulary are taken from the tokenizer. An empty string becomes its special tokens.

        Args:
            texts: Strings.
            tokenizer: A tokenizer of transformers or tokenizers. Only fast tokenizers use all cores.
            max_length: Maximum number of tokens of a text. Default: the limit that the tokenizer states for its model.
            pad_multiple: As for `TokenSource`.
            progress: Whether to show a progress bar. Default: only on a terminal.

        Returns:
            The source.

        Raises:
            TypeError: If an element is not a string. The message names the row.
            ValueError: If there are no texts, or a text has no tokens. The message names the row.
        """
        max_length = _optional(max_length, "max_length", 1)
        checks.integer(pad_multiple, "pad_multiple", 1)
        limit = max_length if max_length is not None else tokenize.model_max_length(tokenizer)
        ids, offsets = tokenize.encode(texts, tokenizer, limit, progress)
        pad, sep = tokenize.special_ids(tokenizer)
        return cls(
            ids,
            offsets,
            vocab_size=tokenize.vocabulary_size(tokenizer),
            pad_id=pad,
            sep_id=sep,
            max_length=limit,
            pad_multiple=pad_multiple,
            tokenizer=tokenizer,
        )

    def __len__(self) -> int:
        return self.offsets.size - 1

    @property
    def device(self) -> torch.device:
        """Device of the ids: the CPU."""
        return torch.device("cpu")

    @property
    def lengths(self) -> Int64Array:
        """Number of tokens of each text after truncation, int64 `[N]`."""
        whole = np.diff(self.offsets)
        return whole if self.max_length is None else np.minimum(whole, self.max_length)

    def width(self, longest: int) -> int:
        """Return the width of a batch of texts of at most `longest` tokens, with padding."""
        width = -(-longest // self.pad_multiple) * self.pad_multiple
        return width if self.max_length is None else min(width, self.max_length)

    def pair_lengths(self, index: Tensor, partner: Tensor) -> IdArray:
        """Return the number of tokens of the longer text of each pair, after truncation.

        Args:
            index: Numbers of the first texts, int64 `[B]`.
            partner: Numbers of the second texts, int64 `[B]`.

        Returns:
            Numbers of tokens, int32 `[B]`.

        Raises:
            IndexError: If a number is outside [0, N).
        """
        host = host_module()
        if host is not None:
            return host.pair_lengths(self.ids, self.offsets, index.numpy(), partner.numpy(), self.longest)
        rows = self._rows(torch.stack([index, partner]))
        return np.minimum(self.offsets[rows + 1] - self.offsets[rows], self.longest).max(axis=0).astype(np.int32)

    def pack(self, index: Tensor, ids: Tensor, mask: Tensor) -> None:
        """Write texts and their attention mask, with padding.

        Args:
            index: Numbers of the texts, int64 `[B]`.
            ids: Memory for the token ids, int64 `[B, S]`.
            mask: Memory for the attention mask, bool `[B, S]`.

        Raises:
            IndexError: If a number is outside [0, N), or a text has more than S tokens.
        """
        host = host_module()
        if host is not None:
            closing = -1 if self.sep_id is None else self.sep_id
            arguments = (index.numpy(), self.longest, closing, self.pad_id, ids.numpy(), mask.numpy())
            host.pack_texts(self.ids, self.offsets, *arguments)
        else:
            self._pack_with_numpy(index, ids, mask)
        if self.padding_side == "left":
            padding.to_left(mask, ids)

    def _pack_with_numpy(self, index: Tensor, ids: Tensor, mask: Tensor) -> None:
        rows, columns = self._rows(index)[:, None], np.arange(ids.shape[1])
        begin, end = self.offsets[rows], self.offsets[rows + 1]
        kept = np.minimum(end - begin, self.longest)
        if kept.size and kept.max() > columns.size:
            raise IndexError(f"a text has {kept.max()} tokens, more than the width {columns.size} of ids and mask")
        inside = columns < kept
        values = np.where(inside, self.ids[np.minimum(begin + columns, end - 1)], self.pad_id)
        if self.sep_id is not None:
            closed = (kept < end - begin) & (self.ids[end - 1] == self.sep_id)
            values[closed & (columns == kept - 1)] = self.sep_id
        ids.copy_(torch.from_numpy(values))
        mask.copy_(torch.from_numpy(inside))

    def gather(self, index: Tensor) -> Tokens:
        """Return unmixed texts, padded to the same length.

        Args:
            index: Numbers of the texts, int64 `[B]`, in [0, N).

        Returns:
            Token ids, int64 `[B, S]`, and attention mask, bool `[B, S]`.
        """
        validate.tensor(index, "index", (torch.int64,), ("B",))
        longest = int(self.pair_lengths(index, index).max()) if index.numel() else 0
        shape = (index.shape[0], self.width(longest))
        tokens = Tokens(torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.bool), self.padding_side)
        self.pack(index, *tokens.tensors())
        return tokens

    def raw(self, index: Tensor) -> Tokens:
        """Return the input of an exported model: the same as `gather`."""
        return self.gather(index)

    def fingerprint(self) -> str:
        """Return a hex digest of the tokenizer and all settings that affect batches. It does not cover the ids."""
        parts = (len(self), self.ids.size, self.pad_id, self.sep_id, self.max_length, self.pad_multiple)
        side = () if self.padding_side == "right" else (self.padding_side,)  # checkpoints of earlier versions resume
        return hashlib.sha256(repr((*parts, self.tokenizer_fingerprint, *side)).encode()).hexdigest()[:16]

    def check_tokenizer(self, tokenizer: TokenizerLike | TokenSource | str | None) -> None:
        """Check that a tokenizer is the one that made the ids. An unknown tokenizer passes.

        Args:
            tokenizer: A tokenizer, its fingerprint, or another source.

        Raises:
            ValueError: If both tokenizers are known and differ.
        """
        expected = self.tokenizer_fingerprint
        given = tokenizer.tokenizer_fingerprint if isinstance(tokenizer, TokenSource) else _fingerprint_of(tokenizer)
        if None not in (given, expected) and given != expected:
            raise ValueError(
                f"tokenizer: the ids were made by another tokenizer (fingerprint {expected} of the ids, {given} of this "
                "tokenizer); use the tokenizer that the model was trained with"
            )

    def check_model(self, model: nn.Module) -> None:
        """Check that a Hugging Face model fits the ids: vocabulary, positions, padding token and side of padding.

        The model runs once on a few short texts, with and without padding, and must give the same outputs.

        Args:
            model: The model.

        Raises:
            ValueError: If the model does not fit.
        """
        embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)
        table = getattr(embeddings(), "weight", None)
        if isinstance(table, Tensor) and self.vocab_size > table.shape[0]:
            raise ValueError(
                f"vocab_size: ids go up to {self.vocab_size - 1}, but the model's embedding table has {table.shape[0]} "
                "rows; use the tokenizer of the model"
            )
        pad_id = getattr(getattr(model, "config", None), "pad_token_id", None)
        if pad_id is not None and pad_id != self.pad_id:
            raise ValueError(
                f"pad_id: the source pads with {self.pad_id}, the model with {pad_id}; use the tokenizer of the model"
            )
        usable, _ = positions(model)
        if usable is not None and self.width(self.longest) > usable:
            raise ValueError(
                f"max_length: texts have up to {self.width(self.longest)} tokens with padding, the model has {usable} "
                f"positions; use max_length={usable}"
            )
        problem = padding.padding_problem(model, self.padding_side, self.pad_id)
        if problem is not None:
            raise ValueError(
                f"padding_side: {type(model).__name__} gives texts that are padded on the {self.padding_side} other "
                f"outputs than the texts alone ({problem}); use the tokenizer of the model, or another padding_side"
            )

    def _rows(self, index: Tensor) -> Int64Array:
        rows: Int64Array = index.numpy()
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            bad = int(rows[(rows < 0) | (rows >= len(self))][0])
            raise IndexError(f"index {bad} is out of range for {len(self)} texts")
        return rows

    def __repr__(self) -> str:
        about = f"{len(self):,} texts of up to {self.longest} tokens, vocabulary {self.vocab_size:,}"
        return f"TokenSource({about}{repr_suffix(self.tier)})"


def _fingerprint_of(tokenizer: TokenizerLike | str | None) -> str | None:
    if tokenizer is None or isinstance(tokenizer, str):
        return tokenizer
    return tokenize.tokenizer_fingerprint(tokenizer)


def _optional(value: object, name: str, low: int) -> int | None:
    return None if value is None else checks.integer(value, name, low)


def _checked_offsets(offsets: IntegersLike) -> Int64Array:
    """Return int64 `[N + 1]`, strictly ascending."""
    array = np.ascontiguousarray(as_integers(offsets, "offsets", (1,)), dtype=np.int64)
    if array.size < 2:
        raise ValueError(f"offsets must have N + 1 entries for N texts, N of 1 or more, got {array.size} entries")
    if array[0] < 0:
        raise ValueError(f"offsets must begin at 0 or above, got {array[0]}")
    steps = np.diff(array)
    if steps.min() < 1:
        row = int(np.argmax(steps < 1))
        if steps[row] < 0:
            raise ValueError(f"offsets must ascend, but descend at text {row}, from {array[row]} to {array[row + 1]}")
        raise ValueError(f"offsets: text {row} has no tokens; an empty text needs at least one special token")
    return array


def _checked_ids(ids: IntegersLike, offsets: Int64Array, vocab_size: int | None) -> IdArray:
    """Return int32 `[T]`, inside the vocabulary wherever a text reads it."""
    array = as_integers(ids, "ids", (1,))
    if offsets[-1] > array.size:
        row = int(np.argmax(offsets[1:] > array.size))
        raise ValueError(f"offsets: text {row} ends at {offsets[row + 1]}, but there are {array.size} ids")
    end = vocab_size if vocab_size is not None else np.iinfo(np.int32).max
    used = array[offsets[0] : offsets[-1]]
    if int(used.min()) < 0 or int(used.max()) >= end:
        at = int(np.argmax((used < 0) | (used >= end))) + int(offsets[0])
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        raise ValueError(
            f"ids must be in the vocabulary, [0, {end:,}), but text {row} has {array[at]} at position {at - offsets[row]}"
        )
    return np.ascontiguousarray(array, dtype=np.int32)
