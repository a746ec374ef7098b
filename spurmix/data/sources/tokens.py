"""TokenSource: texts as ragged token ids, which the loader pads together pair by pair."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.cells import as_integers, host_module
from spurmix.data.batch import Tokens
from spurmix.data.dataset import tokenize as tokenise
from spurmix.data.sources.placement import Tier, shown
from spurmix.ops import validate

IdArray = NDArray[np.int32]
OffsetArray = NDArray[np.int64]


class TokenSource:
    """Texts as token ids: text n is ``ids[offsets[n]:offsets[n + 1]]``, special tokens included.

    Args:
        ids: token ids of all texts in a row, integers `[T]`: array, memory map or CPU tensor. int32 is not copied.
        offsets: where texts begin and end, integers `[N + 1]`, ascending; int64 is not copied.
        vocab_size: ids lie in [0, vocab_size), which is checked once, here. None: one more than the largest id.
        pad_id: fills up shorter texts; the mask says where.
        sep_id: token that closes a text, such as BERT's [SEP]. A text that ends with it also does when it is shortened.
        max_length: tokens that are kept of a longer text, and the most a batch is padded to. None: all.
        pad_multiple: batches are padded to a multiple of it, 8 for tensor cores, as far as max_length allows.
        tokenizer: `tokenizer_fingerprint` of what made the ids, or that tokenizer itself; None where nobody knows.

    Attributes:
        ids, offsets: int32 `[T]`, int64 `[N + 1]`. longest: tokens of the longest text, as it is kept.
        tier: as of an `ImageSource`.

    Raises:
        TypeError, ValueError: naming argument and row: a text without tokens (an empty string has its special tokens),
            ids outside the vocabulary, offsets that descend or leave the ids.
    """

    tier: Tier | None = None

    def __init__(
        self,
        ids: Any,
        offsets: Any,
        *,
        vocab_size: int | None = None,
        pad_id: int = 0,
        sep_id: int | None = None,
        max_length: int | None = None,
        pad_multiple: int = 8,
        tokenizer: Any = None,
    ) -> None:
        self.pad_id, self.sep_id = checks.integer(pad_id, "pad_id", 0), _optional(sep_id, "sep_id", 0)
        self.max_length = _optional(max_length, "max_length", 1)
        self.pad_multiple = checks.integer(pad_multiple, "pad_multiple", 1)
        vocab_size = _optional(vocab_size, "vocab_size", 1)
        self.offsets = _checked_offsets(offsets)
        self.ids = _checked_ids(ids, self.offsets, vocab_size)
        if vocab_size is not None and not max(pad_id, sep_id or 0) < vocab_size:
            raise ValueError(f"pad_id {pad_id} and sep_id {sep_id} must lie in the vocabulary, [0, {vocab_size})")
        self.vocab_size = vocab_size if vocab_size is not None else max(int(self.ids.max()), self.pad_id) + 1
        whole = int(np.diff(self.offsets).max())
        self.longest = whole if self.max_length is None else min(whole, self.max_length)
        known = tokenizer is None or isinstance(tokenizer, str)
        self.tokenizer_fingerprint: str | None = tokenizer if known else tokenise.tokenizer_fingerprint(tokenizer)

    @classmethod
    def from_lists(cls, texts: Sequence[Any], **options: Any) -> TokenSource:
        """Token ids of each text: a list, array or tensor of integers per text; `options` as above."""
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise TypeError(f"texts must be a sequence of token ids of each text, got {type(texts).__name__}")
        rows = [as_integers(row, f"texts[{n}]", (1,)) for n, row in enumerate(texts)]
        if not rows:
            raise ValueError("texts: the dataset is empty, need at least one text")
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([row.size for row in rows], out=offsets[1:])
        return cls(np.concatenate(rows), offsets, **options)

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        tokenizer: Any,
        *,
        max_length: int | None = None,
        pad_multiple: int = 8,
        progress: bool | None = None,
    ) -> TokenSource:
        """Strings through a Hugging Face tokenizer, in parallel batches, packed while the next batch is in work.

        The ids are those of ``tokenizer(text, truncation=True, max_length=max_length)``. Padding, closing token and
        vocabulary are the tokenizer's. An empty string becomes its special tokens.

        Args:
            texts: a sequence of strings.
            tokenizer: of transformers (fast ones work on all cores), or a `tokenizers.Tokenizer`.
            max_length: default: what the tokenizer says its model takes, if it does.
            progress: show a progress bar; default: on a terminal.

        Raises:
            TypeError, ValueError: naming the row: what is no string, a text without any token.
        """
        max_length = _optional(max_length, "max_length", 1)
        checks.integer(pad_multiple, "pad_multiple", 1)
        limit = max_length if max_length is not None else tokenise.model_max_length(tokenizer)
        ids, offsets = tokenise.encode(texts, tokenizer, limit, progress)
        pad, sep = tokenise.special_ids(tokenizer)
        return cls(
            ids,
            offsets,
            vocab_size=tokenise.vocabulary_size(tokenizer),
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
        """Where the ids are: always the CPU."""
        return torch.device("cpu")

    @property
    def lengths(self) -> OffsetArray:
        """Tokens of each text, as it is kept, int64 `[N]`."""
        whole = np.diff(self.offsets)
        return whole if self.max_length is None else np.minimum(whole, self.max_length)

    def width(self, longest: int) -> int:
        """What a batch is padded to whose longest text has `longest` tokens."""
        width = -(-longest // self.pad_multiple) * self.pad_multiple
        return width if self.max_length is None else min(width, self.max_length)

    def pair_lengths(self, index: Tensor, partner: Tensor) -> IdArray:
        """Tokens of the longer text of each pair, int32 `[B]`; index, partner int64 `[B]`.

        Raises:
            IndexError: for a number outside [0, N), before any read.
        """
        host = host_module()
        if host is not None:
            return host.pair_lengths(self.ids, self.offsets, index.numpy(), partner.numpy(), self.longest)
        rows = self._rows(torch.stack([index, partner]))
        return np.minimum(self.offsets[rows + 1] - self.offsets[rows], self.longest).max(axis=0).astype(np.int32)

    def pack(self, index: Tensor, ids: Tensor, mask: Tensor) -> None:
        """Write texts into ids int64 `[B, S]`, padded, and mask bool `[B, S]`; index int64 `[B]`.

        Raises:
            IndexError: for a number outside [0, N), before any read of it, or a text longer than S.
        """
        host = host_module()
        if host is not None:
            closing = -1 if self.sep_id is None else self.sep_id
            arguments = (index.numpy(), self.longest, closing, self.pad_id, ids.numpy(), mask.numpy())
            host.pack_texts(self.ids, self.offsets, *arguments)
            return
        rows, columns = self._rows(index)[:, None], np.arange(ids.shape[1])
        begin, end = self.offsets[rows], self.offsets[rows + 1]
        kept = np.minimum(end - begin, self.longest)
        if kept.size and kept.max() > columns.size:
            raise IndexError(f"a text has {kept.max()} tokens, more than the width {columns.size}")
        inside = columns < kept
        values = np.where(inside, self.ids[np.minimum(begin + columns, end - 1)], self.pad_id)
        if self.sep_id is not None:
            closed = (kept < end - begin) & (self.ids[end - 1] == self.sep_id)
            values[closed & (columns == kept - 1)] = self.sep_id
        ids.copy_(torch.from_numpy(values))
        mask.copy_(torch.from_numpy(inside))

    def gather(self, index: Tensor) -> Tokens:
        """The texts unmixed, padded together: `Tokens` of int64 ids and bool mask `[B, S]`; index int64 `[B]`."""
        validate.tensor(index, "index", (torch.int64,), ("B",))
        longest = int(self.pair_lengths(index, index).max()) if index.numel() else 0
        shape = (index.shape[0], self.width(longest))
        tokens = Tokens(torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.bool))
        self.pack(index, *tokens.tensors())
        return tokens

    def raw(self, index: Tensor) -> Tokens:
        """What an exported model reads: the same as `gather`."""
        return self.gather(index)

    def fingerprint(self) -> str:
        """A hex digest of the tokenizer and of what else decides batches, the ids themselves excepted."""
        parts = (len(self), self.ids.size, self.pad_id, self.sep_id, self.max_length, self.pad_multiple)
        return hashlib.sha256(repr((*parts, self.tokenizer_fingerprint)).encode()).hexdigest()[:16]

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Check that `tokenizer` (or another TokenSource, or a fingerprint) is the one that made the ids.

        Raises:
            ValueError: where both are known and differ.
        """
        if isinstance(tokenizer, TokenSource):
            other = tokenizer.tokenizer_fingerprint
        else:
            known = tokenizer is None or isinstance(tokenizer, str)
            other = tokenizer if known else tokenise.tokenizer_fingerprint(tokenizer)
        if None not in (other, self.tokenizer_fingerprint) and other != self.tokenizer_fingerprint:
            raise ValueError(
                f"tokenizer: the ids were made by another one (fingerprint {self.tokenizer_fingerprint} there, {other} "
                "here); a model takes the ids of the tokenizer it was trained with"
            )

    def check_model(self, model: nn.Module) -> None:
        """Check that a Hugging Face model takes these ids: vocabulary, padding token, positions.

        Raises:
            ValueError: naming what does not fit.
        """
        embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)
        table = getattr(embeddings(), "weight", None)
        if isinstance(table, Tensor) and self.vocab_size > table.shape[0]:
            raise ValueError(
                f"vocab_size: ids go up to {self.vocab_size - 1}, but the model's table has {table.shape[0]} rows; "
                "is the tokenizer another model's?"
            )
        padding = getattr(getattr(model, "config", None), "pad_token_id", None)
        if padding is not None and padding != self.pad_id:
            raise ValueError(
                f"pad_id: the source pads with {self.pad_id}, the model with {padding}; is the tokenizer another model's?"
            )
        usable, _ = positions(model)
        if usable is not None and self.width(self.longest) > usable:
            raise ValueError(
                f"max_length: texts take up to {self.width(self.longest)} positions with padding, the model has "
                f"{usable}; give max_length={usable}"
            )

    def _rows(self, index: Tensor) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = index.numpy()
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            bad = int(rows[(rows < 0) | (rows >= len(self))][0])
            raise IndexError(f"index {bad} is out of range for {len(self)} texts")
        return rows

    def __repr__(self) -> str:
        about = f"{len(self):,} texts of up to {self.longest} tokens, vocabulary {self.vocab_size:,}"
        return f"TokenSource({about}{shown(self.tier)})"


def positions(model: nn.Module) -> tuple[int | None, int | None]:
    """The most tokens a text may have (None: nothing limits it), and the number before the first position, or None.

    RoBERTa's kin number tokens from padding_idx + 1 on, tell padding by its id, and lose the positions before.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] == "position_embeddings":
            before = module.padding_idx
            return module.num_embeddings - (0 if before is None else before + 1), before
    return None, None


def _optional(value: Any, name: str, low: int) -> int | None:
    return None if value is None else checks.integer(value, name, low)


def _checked_offsets(offsets: Any) -> OffsetArray:
    """`offsets` as int64 `[N + 1]`, from 0 up, ascending: every text has a token."""
    array = np.ascontiguousarray(as_integers(offsets, "offsets", (1,)), dtype=np.int64)
    if array.size < 2:
        raise ValueError(f"offsets: need N + 1 entries for N texts of at least one, got {array.size}")
    if array[0] < 0:
        raise ValueError(f"offsets must begin at 0 or above, got {array[0]}")
    steps = np.diff(array)
    if steps.min() < 1:
        row = int(np.argmax(steps < 1))
        if steps[row] < 0:
            raise ValueError(f"offsets: descend at text {row}, from {array[row]} to {array[row + 1]}")
        raise ValueError(f"offsets: text {row} has no tokens; an empty text needs at least a special token")
    return array


def _checked_ids(ids: Any, offsets: OffsetArray, vocab_size: int | None) -> IdArray:
    """`ids` as int32 `[T]`, inside the vocabulary wherever a text reads them."""
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
            f"ids: text {row} has {array[at]} at position {at - offsets[row]}, outside the vocabulary, [0, {end:,})"
        )
    return np.ascontiguousarray(array, dtype=np.int32)
