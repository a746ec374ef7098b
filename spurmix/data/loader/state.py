"""The saved position of a loader, and the fingerprint of the sequence that it belongs to."""

from __future__ import annotations

from typing import Any, TypeAlias

from spurmix.core.groups import GroupIndex
from spurmix.data.loader.sequence import SampleSequence

Fingerprint: TypeAlias = dict[str, object]
LoaderState: TypeAlias = dict[str, Any]
"""`{"step": int, "fingerprint": Fingerprint}`, as JSON stores it."""


def sequence_fingerprint(
    sequence: SampleSequence, groups: GroupIndex, tokens: str | None, bucket: int, steps: int
) -> Fingerprint:
    """Return what determines the samples of every batch.

    Args:
        sequence: The sequence of any rank.
        groups: Groups of the dataset.
        tokens: Fingerprint of the tokens of a text source, or None.
        bucket: Batches per window of texts of similar length.
        steps: Batches of the run.

    Returns:
        The fingerprint.
    """
    fingerprint: Fingerprint = {
        "groups": groups.fingerprint(),
        "policy": sequence.tables.fingerprint,
        "seed": sequence.seed,
        "batch_size": sequence.batch_size,
    }
    if tokens is not None:
        fingerprint["tokens"] = tokens
        # The samples of an incomplete last window depend on the number of steps.
        incomplete = bucket > 1 and steps % bucket
        fingerprint["bucket"] = f"{bucket} of {steps}" if incomplete else bucket
    return fingerprint


def check_state(state: LoaderState, fingerprint: Fingerprint) -> int:
    """Check that a saved state belongs to a sequence.

    Args:
        state: A result of `MixLoader.state_dict`.
        fingerprint: Fingerprint of the sequence.

    Returns:
        The saved step.

    Raises:
        ValueError: If the state belongs to another sequence. The message names what differs.
    """
    valid = isinstance(state, dict) and {"step", "fingerprint"} <= state.keys()
    if not valid or not isinstance(state["fingerprint"], dict):
        raise ValueError('state must be a result of state_dict(): {"step", "fingerprint"}')
    saved: Fingerprint = state["fingerprint"]
    different = [name for name, value in fingerprint.items() if value != saved.get(name)]
    if "groups" in different and "policy" in different:
        different.remove("policy")  # the fingerprint of the policy depends on the groups
    if different:
        listed = ", ".join(f"{name} ({saved.get(name)!r} saved, {fingerprint[name]!r} here)" for name in different)
        raise ValueError(f"state belongs to another sequence; different: {listed}")
    step: int = state["step"]
    return step
