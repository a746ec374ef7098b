"""The digest that saved states of loaders and runs contain. It identifies the draw tables.

Earlier versions stored a dense table with one threshold for each pair of a row and a group. The digest is that of the dense
table, so that states saved by earlier versions stay valid. Tables whose dense form would be too large are hashed directly.
"""

from __future__ import annotations

import hashlib

import numpy as np

from spurmix.core import table_layout as layout
from spurmix.core.array_types import Int64Array, IntArray
from spurmix.core.packed_rows import unpack_rows, unpack_thresholds
from spurmix.core.partners import expand

FIRST_MAGIC = 0x5350524D49580001
"""First word of the header in the dense form."""
NEW_FLAGS = layout.FLAG_SUMS | layout.FLAG_MEMBERS
"""Flags that the dense form does not have."""
MAX_DENSE_WORDS = 1 << 27
"""Maximum number of thresholds that are hashed in the dense form."""
BLOCK_WORDS = 1 << 20
"""Number of thresholds that are computed at a time."""


def table_digest(packed: Int64Array) -> str:
    """Return the hex digest of packed tables.

    Args:
        packed: The packed tables.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    groups, strata, period, rows, flags, list_words = packed[
        layout.WORD_NUM_GROUPS : layout.WORD_LIST_WORDS + 1
    ].tolist()
    if rows * groups > MAX_DENSE_WORDS:
        header = packed[: layout.HEADER_WORDS].copy()
        header[layout.WORD_FLAGS] &= ~layout.FLAG_MEMBERS
        digest.update(header.data)
        digest.update(packed[layout.HEADER_WORDS :].data)
        return digest.hexdigest()
    sizes = layout.section_sizes(groups, strata, period, rows, list_words)
    ends = layout.HEADER_WORDS + np.cumsum(sizes)
    sections = dict(zip(layout.SECTIONS, np.split(packed[: ends[-1]], ends - sizes)[1:], strict=True))
    kept = [sections[name] for name in ("slot", "share", "first", "size", "offsets", "row_of")]
    starts = layout.HEADER_WORDS + np.cumsum([0, *(s.size for s in kept), rows * groups, layout.QUANTILES])
    counts = int(packed[layout.WORD_NUM_EXAMPLES]), groups, strata, period, rows, flags & ~NEW_FLAGS
    digest.update(np.array([FIRST_MAGIC, starts[-1], *counts, *starts[:-1]], dtype=np.int64).data)
    for section in kept:
        digest.update(np.ascontiguousarray(section).data)
    words, step = sections["rows"].reshape(rows, layout.ROW_WORDS), max(1, BLOCK_WORDS // groups)
    for start in range(0, rows, step):
        digest.update(_dense(words[start : start + step], sections["lists"], flags, groups).data)
    digest.update(np.ascontiguousarray(sections["quantile"]).data)
    return digest.hexdigest()


def members_digest(members: IntArray) -> str:
    """Return the hex digest of the example numbers by position: 16 hexadecimal digits, the same for int32 and int64."""
    return hashlib.blake2b(np.ascontiguousarray(members, dtype=np.int64).data, digest_size=8).hexdigest()


def _dense(words: Int64Array, lists: Int64Array, flags: int, groups: int) -> Int64Array:
    """A threshold of every group for rows, `[R, G]`."""
    _, slice_first, slice_length = unpack_rows(words)
    counts = slice_length.sum(axis=1)
    thresholds = unpack_thresholds(words, lists, flags)
    steps = np.diff(thresholds, prepend=0)
    starts = (np.cumsum(counts) - counts)[counts > 0]
    steps[starts] = thresholds[starts]
    dense = np.zeros((len(words), groups), dtype=np.int64)
    dense[np.repeat(np.arange(len(words)), counts), lists[expand(slice_first, slice_length)]] = steps
    return np.cumsum(dense, axis=1, out=dense)
