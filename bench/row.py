"""One result of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields


@dataclass
class Row:
    """Result of one contender, or the reason why there is none.

    Attributes:
        case: Name of the case.
        contender: Name of the contender.
        kind: "ours" (spurmix), "variant" (another way to use spurmix), "peer" (other code), "baseline" (a part of the work
            or the work without mixing) or "limit" (physical limit of the memory or the disk).
        median_ms: Median time of one run in milliseconds. None if the contender was not measured.
        q1_ms: First quartile.
        q3_ms: Third quartile.
        per_second: Items per second at the median.
        ratio: Median time divided by the reference's median time, above 1 for slower contenders. The reference is the
            first "ours" row. For the training steps on a GPU it is the step on a fixed batch.
        share: Speed divided by the limit's speed. The limit is the row of kind "limit" of the same case, or on a GPU a
            copy on the device.
        note: Remark for the reader.
        error: Why the contender was not measured, or why its figure is in doubt.
        step: Step of the GPU benchmark.
        moved_bytes: Number of bytes that the work must read and write.
        launches: Number of kernels that a call launches.
        peak_mib: Maximum memory allocated during a call, beyond the memory allocated before it, in MiB.
    """

    case: str
    contender: str
    kind: str = ""
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    per_second: float | None = None
    ratio: float | None = None
    share: float | None = None
    note: str = ""
    error: str = ""
    step: str = ""
    moved_bytes: int | None = None
    launches: int | None = None
    peak_mib: float | None = None


def table(rows: Sequence[Row]) -> list[dict[str, str | int | float | None]]:
    """Return rows as dictionaries, without the columns that are empty in all of them."""
    values = [asdict(row) for row in rows]
    columns = [field.name for field in fields(Row) if any(row[field.name] not in (None, "") for row in values)]
    return [{column: row[column] for column in columns} for row in values]
