"""Learning-rate schedules, as factors of the maximum rate."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "one_cycle", "linear", "step", "constant")


def factor(schedule: str, step: int, steps: int, warmup: float, stages: int = 3) -> float:
    """Compute the factor of the learning rate for an optimizer step.

    Args:
        schedule: "cosine", "one_cycle" (cosine after a warmup of at least 30% of the steps), "linear", "step" or
            "constant".
        step: Number of the optimizer step, in [0, steps).
        steps: Total number of optimizer steps.
        warmup: Fraction of the steps over which the rate rises linearly, in [0, 1].
        stages: Number of equal stages of "step". Each stage divides the rate by 10.

    Returns:
        The factor, in [0, 1].
    """
    fraction = max(warmup, 0.3) if schedule == "one_cycle" else warmup
    rising = round(fraction * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    if schedule == "linear":
        return 1.0 - done
    if schedule == "step":
        return 0.1 ** ((step - rising) * stages // max(1, steps - rising))
    return 1.0 if schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * done))
