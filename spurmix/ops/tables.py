"""Draw tables as tensors, built once for a GroupIndex and a policy and then handed to the ops."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.core.table_layout import FLAG_KEEP_LABELS, WORD_FLAGS
from spurmix.core.tables import build_tables
from spurmix.ops import validate

_KEPT = 4


@dataclass(frozen=True)
class DrawTables:
    """What the draw reads, on a device: `packed` int64 and `members` (empty where positions are example numbers)."""

    packed: Tensor
    members: Tensor
    num_examples: int
    period: int
    fingerprint: str
    keeps_labels: bool

    def to(self, device: torch.device | str) -> DrawTables:
        """The same tables on `device`."""
        device = validate.device(device)
        return replace(self, packed=self.packed.to(device), members=self.members.to(device))


def draw_tables(groups: GroupIndex, policy: MixPolicy) -> DrawTables:
    """Tables of `policy` on `groups`; those of the last few policies are kept with the groups and shared.

    Raises:
        TypeError, ValueError: where the policy does not fit the groups, naming the part.
    """
    checks.instance(groups, "groups", GroupIndex)
    kept: list[tuple[MixPolicy, DrawTables]] = groups.__dict__.setdefault("_draw_tables", [])
    for known, tables in kept:
        if known is policy:
            return tables
    built = build_tables(groups, policy)
    tables = DrawTables(
        torch.from_numpy(built.packed),
        torch.from_numpy(built.members),
        built.num_examples,
        built.period,
        built.fingerprint,
        bool(built.packed[WORD_FLAGS] & FLAG_KEEP_LABELS),
    )
    kept.append((policy, tables))
    del kept[:-_KEPT]
    return tables
