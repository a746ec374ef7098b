"""Draw tables as tensors, which the operators read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.core.table_layout import FLAG_KEEP_LABELS, WORD_FLAGS
from spurmix.core.tables import Tables, build_tables
from spurmix.ops import validate

_CACHE_SIZE = 4
"""Number of policies of which a `GroupIndex` caches the tables."""


@dataclass(frozen=True)
class DrawTables:
    """The tables of a policy for one `GroupIndex`, on a device. `draw_tables` makes them.

    Attributes:
        packed: The packed tables, int64 `[L]`.
        members: Example number of each position, int32 or int64 `[N]`. Empty if positions are example numbers.
        num_examples: Number of examples, N.
        period: Number of slots in a period of the schedule.
        keeps_labels: Whether a sample keeps the label of its index.
        built: The tables as NumPy arrays, on the CPU.
    """

    packed: Tensor
    members: Tensor
    num_examples: int
    period: int
    keeps_labels: bool
    built: Tables = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the packed tables. Computed at the first access."""
        return self.built.fingerprint

    def to(self, device: torch.device | str) -> DrawTables:
        """Copy the tables to a device.

        Args:
            device: A `torch.device`, or a name such as "cuda:0".

        Returns:
            The tables on the device.

        Raises:
            TypeError: If `device` has a wrong type.
            ValueError: If there is no such device.
        """
        device = validate.device(device)
        return replace(self, packed=self.packed.to(device), members=self.members.to(device))


def draw_tables(groups: GroupIndex, policy: MixPolicy, seed: int = 0) -> DrawTables:
    """Build the tables that the operators need to draw samples. The groups cache those of the last four policies.

    Args:
        groups: Groups of the dataset.
        policy: The policy.
        seed: Selects the subsample of a policy with `subsample=True`, in [0, 2^63). Not used otherwise.

    Returns:
        The tables, on the CPU. Move them with `.to(device)`.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If the policy does not fit the groups.

    Example:
        >>> tables = draw_tables(GroupIndex([0, 0, 1], [0, 1, 1]), policies.group_balanced())
        >>> tables.num_examples, tables.period
        (3, 3)

    Source:
        `docs/draw-specification.md`, section "Tables".
    """
    checks.instance(groups, "groups", GroupIndex)
    if isinstance(policy, MixPolicy) and policy.subsample:
        seed = checks.integer(seed, "seed", 0, (1 << 63) - 1)
    cache: list[tuple[MixPolicy, int, DrawTables]] = groups.__dict__.setdefault("_draw_tables", [])
    for cached, of_seed, tables in cache:
        if cached is policy and (of_seed == seed or not policy.subsample):
            return tables
    built = build_tables(groups, policy, seed)
    tables = DrawTables(
        torch.from_numpy(built.packed),
        torch.from_numpy(built.members),
        built.num_examples,
        built.period,
        bool(built.packed[WORD_FLAGS] & FLAG_KEEP_LABELS),
        built,
    )
    cache.append((policy, seed, tables))
    del cache[:-_CACHE_SIZE]
    return tables
