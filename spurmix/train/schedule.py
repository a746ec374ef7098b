"""Learning-rate schedules as factors of the peak rate."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "one_cycle", "linear", "step", "constant")


def factor(schedule: str, step: int, steps: int, warmup: float, stages: int = 3) -> float:
    """Factor of the learning rate for optimizer step `step` of `steps`.

    `warmup` is the share of steps over which the rate rises linearly; "one_cycle" rises over at least 30% and falls
    along a cosine; "step" has `stages` equal parts, each at a tenth of the rate before.
    """
    share = max(warmup, 0.3) if schedule == "one_cycle" else warmup
    rising = round(share * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    if schedule == "linear":
        return 1.0 - done
    if schedule == "step":
        return 0.1 ** ((step - rising) * stages // max(1, steps - rising))
    return 1.0 if schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * done))
