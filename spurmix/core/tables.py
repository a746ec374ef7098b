"""Draw tables: a policy for one `GroupIndex` as integers that every backend reads the same way.

`docs/draw-specification.md`, "Tables", defines them. `table_layout.py` defines how they are packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spurmix.core import checks
from spurmix.core import table_layout as layout
from spurmix.core.array_types import Int64Array, IntArray
from spurmix.core.groups import GroupIndex
from spurmix.core.packed_rows import pack_rows
from spurmix.core.policy import MixPolicy
from spurmix.core.schedule import make_schedule
from spurmix.core.table_digest import members_digest, table_digest


@dataclass(frozen=True)
class Tables:
    """What a draw reads.

    Attributes:
        packed: The packed tables, int64.
        members: Example number of each position, `[N]`. Empty if positions are example numbers.
        num_examples: Number of examples, N.
        period: Number of slots in a period of the schedule, W.
        hash_members: Whether the fingerprint covers the members, because groups, packed tables and seed do not determine
            which examples are drawn.
    """

    packed: Int64Array
    members: IntArray
    num_examples: int
    period: int
    hash_members: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the packed tables, which contain the policy and the group sizes, and of members if necessary."""
        digest = table_digest(self.packed)
        return f"{digest}-{members_digest(self.members)}" if self.hash_members else digest


def build_tables(groups: GroupIndex, policy: MixPolicy, seed: int = 0) -> Tables:
    """Build the tables of a policy.

    Args:
        groups: Groups of the dataset.
        policy: The policy.
        seed: Selects the subsample of a policy with `subsample=True`. Not used otherwise.

    Returns:
        The tables. Examples that are left out form one more group, which is never drawn.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If the policy does not fit the groups.
    """
    if not isinstance(policy, MixPolicy):
        raise TypeError(f"policy must be a MixPolicy (see spurmix.policies), got {type(policy).__name__}")
    checks.instance(groups, "groups", GroupIndex)
    resolved = policy.resolve_arrays(groups, seed)
    plan = make_schedule(resolved.weights)
    offsets, members = resolved.selection.groups.offsets, groups.members
    first = offsets[resolved.first_group[:-1]]
    size = offsets[resolved.first_group[1:]] - first
    row_of, rows, lists, kind = pack_rows(resolved.partner_rows, resolved.selection.groups.num_groups)
    if resolved.selection.members is not None:
        members = resolved.selection.members
        offsets, row_of = np.append(offsets, groups.num_examples), np.append(row_of, -1)
    sections = [
        (plan.stratum << 32) | plan.rank,
        plan.share,
        first,
        size,
        offsets,
        row_of,
        rows.reshape(-1),
        lists,
        resolved.quantile,
    ]
    counts = row_of.size, plan.share.size, plan.stratum.size, len(rows)
    assert tuple(s.size for s in sections) == layout.section_sizes(*counts, lists.size)
    header = np.zeros(layout.HEADER_WORDS, dtype=np.int64)
    length = header.size + sum(s.size for s in sections)
    flags = layout.FLAG_REPLACEMENT * resolved.replacement + layout.FLAG_KEEP_LABELS * (resolved.labels == "keep")
    flags |= kind | layout.FLAG_MEMBERS * (members is not None)
    words = layout.MAGIC, length, groups.num_examples, *counts, flags, lists.size
    header[: len(words)] = words
    members = members if members is not None else np.empty(0, dtype=np.int32)
    packed = np.concatenate([header, *sections]).astype(np.int64, copy=False)
    # Target sets are not part of the groups, nor are the attributes of custom groups, which decide who is left out.
    by_example = policy.targets is not None or (groups.custom and policy.unknown == "exclude")
    hash_members = by_example and resolved.selection.members is not None
    return Tables(packed, members, groups.num_examples, int(plan.stratum.size), hash_members)
