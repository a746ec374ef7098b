"""Layout of the packed draw tables: the one definition of the header, the sections and the flags.

The tables are one int64 array: a header of `HEADER_WORDS` words, then the sections in the order of `SECTIONS`.
`csrc/draw.h` states the same layout for C++ and CUDA, and `tests/core/test_draw_table_layout.py` compares the two.
"""

from __future__ import annotations

from spurmix.core.lam import POINTS

MAGIC = 0x5350524D49580002
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
"""Number of distinct rows of partners."""
WORD_FLAGS = 7
WORD_LIST_WORDS = 8
"""Number of words of the lists that the rows use. The remaining words of the header are 0."""

FLAG_REPLACEMENT = 1
"""Examples are drawn with replacement."""
FLAG_KEEP_LABELS = 2
"""A sample keeps the label of its index."""
FLAG_SUMS = 4
"""Rows of partners have running sums of weights in place of thresholds."""
FLAG_MEMBERS = 8
"""Positions are not example numbers, so a draw requires the members."""

QUANTILES = POINTS
"""Number of points of the quantile table."""

ROW_WORDS = 5
"""Words of a row of partners: its list of thresholds, `first << 32 | count`, then the slices of its list of groups.

If `FLAG_SUMS` is set, `first` is the first word of a list of running sums instead.

A slice is `begin << 32 | first`: entry `begin` and the following ones are words `first` and following of the lists. A
slice that is not used has `begin = count`.
"""

ROW_SLICES = ROW_WORDS - 1
"""Number of slices of a row."""

SUM_HEAD_WORDS = 2
"""Words of a list of running sums before its runs: the number of runs, and the sum of all weights (float64)."""

RUN_WORDS = 3
"""Words of a run: its first entry, the running sum of this entry, and the step from entry to entry (both float64)."""

SECTIONS = ("slot", "share", "first", "size", "offsets", "row_of", "rows", "lists", "quantile")
"""Sections in order: the schedule's slots (stratum << 32 | rank), the strata, the groups, the partners, and lam."""

MAX_COUNT = 1 << 31
"""Maximum number of groups, strata, slots and words of the lists."""


def section_sizes(num_groups: int, num_strata: int, period: int, num_rows: int, list_words: int) -> tuple[int, ...]:
    """Number of words of each section, in the order of `SECTIONS`. The sections follow the header without gaps."""
    return (
        period,
        num_strata,
        num_strata,
        num_strata,
        num_groups + 1,
        num_groups,
        num_rows * ROW_WORDS,
        list_words,
        QUANTILES,
    )
