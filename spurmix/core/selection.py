"""Which examples a policy draws: the treatment of examples of unknown attribute, and subsamples of groups."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, cast, get_args

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.array_types import Int64Array, IntArray
from spurmix.core.groups import MIXED, UNKNOWN, GroupIndex
from spurmix.core.shares import UnknownAttributes

Unknown: TypeAlias = Literal["bulk", "exclude", "group"]
"""What a policy does with examples of unknown attribute."""
CHOICES = get_args(Unknown)


class SelectionOptions(TypedDict):
    """The arguments of `MixPolicy` that select examples."""

    unknown: Unknown
    subsample: bool


AS_GROUPS: SelectionOptions = {"unknown": "group", "subsample": False}
"""The defaults of `MixPolicy`."""


def checked_choice(
    name: str, default: Unknown, unknown: object, attributed_only: object, subsample: object
) -> SelectionOptions:
    """Check the arguments of the policy `name` that select examples."""
    return {
        "unknown": checked_unknown(unknown, attributed_only, default, name),
        "subsample": checks.flag(subsample, f"{name}: subsample"),
    }


def checked_unknown(unknown: object, attributed_only: object, default: Unknown, name: str) -> Unknown:
    """Return the treatment of examples of unknown attribute that two arguments of the policy `name` select.

    Raises TypeError if an argument has a wrong type, and ValueError if it has another value, or the two contradict each
    other.
    """
    if unknown is not None and unknown not in CHOICES:
        raise ValueError(f"{name}: unknown must be one of {', '.join(map(repr, CHOICES))}, got {unknown!r}")
    given = cast(Unknown | None, unknown)
    if attributed_only is None:
        return default if given is None else given
    only = checks.flag(attributed_only, f"{name}: attributed_only")
    if unknown is not None and only != (unknown == "exclude"):
        raise ValueError(
            f'{name}: attributed_only={only} contradicts unknown={unknown!r}: attributed_only=True means unknown="exclude"; '
            "give one of them"
        )
    if only:
        return "exclude"
    return given if given is not None else "group" if default == "exclude" else default


@dataclass(frozen=True)
class SelectedExamples:
    """The examples that a policy draws.

    Attributes:
        groups: These examples, sorted by group, with the groups of the whole dataset. Groups may be empty.
        members: Example number of each of these examples, `[N']`, followed by those of the others. None: all examples.
        bulk: Whether examples of unknown attribute are drawn in proportion to their number.
    """

    groups: GroupIndex
    members: IntArray | None
    bulk: bool


def select_examples(
    groups: GroupIndex,
    unknown: Unknown,
    subsample: bool,
    seed: int = 0,
    targets: Int64Array | NDArray[np.bool_] | None = None,
) -> SelectedExamples:
    """Select the examples that a policy draws.

    Args:
        groups: Groups of the dataset.
        unknown: "exclude" leaves out the examples of unknown attribute.
        subsample: Whether each group is cut to the size of the smallest. With `unknown="bulk"`, the examples of unknown
            attribute are no group, and are not cut.
        seed: Selects the subsample, in [0, 2^63).
        targets: Numbers, or a mask `[N]`, of examples that form groups of their own, one for each class.

    Returns:
        The selection.

    Raises:
        UnknownAttributes: If a class would have no examples.
        ValueError: If `subsample` is True and a group has no examples.
    """
    kept = np.ones(groups.num_examples, dtype=bool) if subsample else None  # by position
    if unknown == "exclude":
        kept = _known_positions(groups, kept)
    if subsample:
        assert kept is not None
        kept = _subsample(groups, kept, unknown, seed)
    if targets is not None and kept is None:
        kept = np.ones(groups.num_examples, dtype=bool)
    if kept is None or (targets is None and kept.all()):
        return SelectedExamples(groups, None, unknown == "bulk")
    members = groups.members if groups.members is not None else np.arange(groups.num_examples)
    if targets is None:
        chosen = members[kept]
        part = _with_examples(groups, chosen, np.concatenate([[0], np.cumsum(kept)])[groups.offsets])
    else:
        part, chosen = _with_targets(groups, members, kept, targets)
    return SelectedExamples(part, np.concatenate([chosen, members[~kept]]), unknown == "bulk")


def _with_examples(groups: GroupIndex, examples: IntArray, offsets: Int64Array) -> GroupIndex:
    """The groups with fewer examples, which are renumbered in the order of `examples`."""
    part = copy.copy(groups)
    for name in ("_draw_tables", "_fingerprint"):
        part.__dict__.pop(name, None)
    part.labels = groups.labels[examples]
    part.attributes = groups.attributes[examples] if groups.attributes is not None else None
    part.num_examples, part.num_groups = examples.size, offsets.size - 1
    part.offsets, part.members = offsets, None
    return part


def _with_targets(
    groups: GroupIndex, members: IntArray, kept: NDArray[np.bool_], targets: Int64Array | NDArray[np.bool_]
) -> tuple[GroupIndex, IntArray]:
    """Groups whose target examples form further groups, one for each class, and the examples in their order."""
    is_target = _mask(targets, groups.num_examples)[members] & kept
    is_source = kept & ~is_target
    moved = members[is_target]
    moved = moved[np.argsort(groups.labels[moved], kind="stable")]
    labels, counts = np.unique(groups.labels[moved], return_counts=True)
    sources = np.concatenate([[0], np.cumsum(is_source)])[groups.offsets]
    examples = np.concatenate([members[is_source], moved])
    part = _with_examples(groups, examples, np.concatenate([sources, sources[-1] + np.cumsum(counts)]))
    part.custom, part.cells, part.target_groups = True, None, labels.size
    part.group_labels = np.concatenate([groups.group_labels, labels.astype(np.int64)])
    part.group_attributes = np.concatenate([groups.group_attributes, np.full(labels.size, MIXED)])
    return part, examples


def _mask(targets: Int64Array | NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    if targets.dtype == bool:
        if targets.size != count:
            raise ValueError(f"mixpro: target must have an entry for each of {count} examples, got {targets.size}")
        return targets.astype(bool)
    if targets.size and not 0 <= targets.min() <= targets.max() < count:
        raise ValueError(
            f"mixpro: target must have example numbers from 0 to {count - 1}, got {targets.min()} to {targets.max()}"
        )
    mask = np.zeros(count, dtype=bool)
    mask[targets] = True
    return mask


def _known_positions(groups: GroupIndex, kept: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Positions of examples of known attribute, or `kept` if all are known."""
    if groups.custom:
        column = groups.spurious_attributes
        if column is None:
            return kept
        known = (column if groups.members is None else column[groups.members]) != UNKNOWN
    else:
        if not (groups.group_attributes == UNKNOWN).any():
            return kept
        known = np.repeat(groups.group_attributes != UNKNOWN, groups.sizes)
    if known.all():
        return kept
    advice = 'label examples, or give unknown="group" or unknown="bulk"'
    if not known.any():
        raise UnknownAttributes(
            f'unknown="exclude": no example has a known attribute, so none would be drawn; {advice}'
        )
    labels = _labels_by_position(groups)
    lost = np.bincount(labels, minlength=1) > 0
    lost[np.unique(labels[known])] = False
    if lost.any():
        label = int(np.argmax(lost))
        name = groups.class_names[label] if groups.class_names else label
        raise UnknownAttributes(
            f'unknown="exclude": class {name} has no example whose attribute is known, so it would not be drawn; {advice}'
        )
    return known


def _labels_by_position(groups: GroupIndex) -> Int64Array:
    if not groups.custom:
        return np.repeat(groups.group_labels, groups.sizes)
    return np.asarray(groups.labels if groups.members is None else groups.labels[groups.members], dtype=np.int64)


def _subsample(groups: GroupIndex, kept: NDArray[np.bool_], unknown: Unknown, seed: int) -> NDArray[np.bool_]:
    """Keep as many random examples of each group as the smallest has."""
    empty = np.flatnonzero(groups.sizes == 0)
    if empty.size:
        raise ValueError(
            f"subsample: group {empty[0]} has no examples, so no example of the others could be kept; renumber the groups"
        )
    group = np.repeat(np.arange(groups.num_groups), groups.sizes)
    cut = np.bincount(group[kept], minlength=groups.num_groups) > 0
    if unknown == "bulk":
        cut &= groups.group_attributes != UNKNOWN
    if not cut.any():
        raise UnknownAttributes("subsample: no example has a known attribute, so there is no group to cut")
    candidates = np.flatnonzero(kept & cut[group])
    sizes = np.bincount(group[candidates], minlength=groups.num_groups)
    smallest = int(sizes[cut].min())
    # The n-th number belongs to position n, so that it does not depend on the other options.
    number = np.random.Philox(key=[seed, 0]).random_raw(groups.num_examples)[candidates]
    order = candidates[np.lexsort((number, group[candidates]))]
    rank = np.arange(order.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept[order[rank >= smallest]] = False
    return kept
