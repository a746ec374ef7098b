"""Layout of the packed draw tables: the one definition of the header, the sections and the flags.

The tables are one int64 array: a header of `HEADER_WORDS` words, then the sections in the order of `SECTIONS`.
`csrc/draw.h` states the same layout for C++ and CUDA, and `tests/core/test_draw_table_layout.py` compares the two.
"""

from __future__ import annotations

from spurmix.core.lam import POINTS

MAGIC = 0x5350524D49580001
"""First header word: "SPRMIX" and the version of the layout."""

HEADER_WORDS = 16

WORD_MAGIC = 0
WORD_LENGTH = 1
"""Number of words in all."""
WORD_NUM_EXAMPLES = 2
WORD_NUM_GROUPS = 3
WORD_NUM_STRATA = 4
WORD_PERIOD = 5
"""Number of slots in a period of the schedule."""
WORD_NUM_ROWS = 6
"""Number of distinct rows of partner thresholds."""
WORD_FLAGS = 7
WORD_STARTS = 8
"""First of eight words: the first word of each section."""

FLAG_REPLACEMENT = 1
"""Examples are drawn with replacement."""
FLAG_KEEP_LABELS = 2
"""A sample keeps the label of its index."""

QUANTILES = POINTS
"""Number of points of the quantile table."""

SECTIONS = ("slot", "share", "first", "size", "offsets", "row_of", "threshold", "quantile")
"""Sections in order: the schedule's slots (stratum << 32 | rank), the strata, the groups, the partners, and lam."""

MAX_COUNT = 1 << 31
"""Maximum number of groups, strata and slots."""


def section_sizes(num_groups: int, num_strata: int, period: int, num_rows: int) -> tuple[int, ...]:
    """Number of words of each section, in the order of `SECTIONS`."""
    return (
        period,
        num_strata,
        num_strata,
        num_strata,
        num_groups + 1,
        num_groups,
        num_rows * num_groups,
        QUANTILES,
    )
