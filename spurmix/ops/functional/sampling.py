"""The draw: index, partner and mixing weight of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.ops import backends, validate
from spurmix.ops.calls import call
from spurmix.ops.tables import DrawTables, draw_tables


class Draw(NamedTuple):
    """Samples of a draw.

    Attributes:
        index: Example numbers, int64 `[B]`.
        partner: Example numbers of the partners, int64 `[B]`.
        lam: Weights of `index`, float32 `[B]`, multiples of 2^-24.
    """

    index: Tensor  # type: ignore[assignment]  # hides the method of tuple
    partner: Tensor
    lam: Tensor


def draw(
    groups: GroupIndex | DrawTables,
    policy: MixPolicy | None = None,
    *,
    seed: int,
    start: int,
    count: int,
    out: Sequence[Tensor] | None = None,
    backend: str = "auto",
) -> Draw:
    """Draw the samples `start` to `start + count - 1` of a policy's infinite sequence.

    A sample depends only on the policy, the seed and its number. It does not depend on the batch, the device or the
    backend. Sampling with weights in plain PyTorch, which has no partners and keeps no sequence::

        weights = 1.0 / group_sizes[group_of_example]
        index = torch.multinomial(weights, count, replacement=True)

    Args:
        groups: Groups of the dataset, or the result of `draw_tables`.
        policy: The policy. None if `groups` are tables.
        seed: Seed, in [0, 2^63).
        start: Number of the first sample, in [0, 2^63).
        count: Number of samples, B. start + count is at most 2^63.
        out: Tensors `[B]` to write to: index, partner, lam, and optionally the group of index, int64.
        backend: "auto", "cpu", "cuda", "triton" or "reference". All give the same bits.

    Returns:
        index, partner and lam. A sample without partner has partner = index and lam = 1.

    Raises:
        TypeError: If an argument has a wrong type, or the policy is missing.
        ValueError: If an argument has an invalid value, or the policy does not fit the groups.
        RuntimeError: If the backend is not available.

    Example:
        >>> groups = GroupIndex([0, 0, 1, 1], [0, 1, 0, 1])
        >>> batch = draw(groups, policies.group_balanced(), seed=0, start=0, count=4)
        >>> sorted(batch.index.tolist())
        [0, 1, 2, 3]

    Source:
        `docs/draw-specification.md`. Random numbers: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
    """
    validate.sequence_position(seed, start, count)
    tables = _tables(groups, policy, seed)
    device = tables.packed.device
    if out is None:
        function = backends.implementation("draw", backend, device)
        return Draw(*call(function, tables.packed, tables.members, seed, start, count)[:3])
    if len(validate.outputs(out)) not in (3, 4):
        raise ValueError(f"out must have 3 or 4 tensors (index, partner, lam, group), got {len(out)}")
    for k, name in enumerate(("index", "partner", "lam", "group")[: len(out)]):
        dtype = torch.float32 if name == "lam" else torch.int64
        validate.output(out[k], (count,), (dtype,), device, f"out[{k}] ({name})")
    validate.no_overlap(out, tables=tables.packed, members=tables.members)
    group = out[3] if len(out) == 4 else torch.empty_like(out[0])
    function = backends.implementation("draw_out", backend, device)
    call(function, tables.packed, tables.members, seed, start, None, *out[:3], group)
    torch.autograd.graph.increment_version(list(out))
    return Draw(*out[:3])


def _tables(groups: GroupIndex | DrawTables, policy: MixPolicy | None, seed: int) -> DrawTables:
    if isinstance(groups, DrawTables):
        if policy is not None:
            raise TypeError("policy must be None if groups are tables, which contain the policy")
        return groups
    if policy is None:
        raise TypeError("policy is required if groups is a GroupIndex, got None")
    return draw_tables(groups, policy, seed)
