"""Hyperparameters of head fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from spurmix.core import checks

HeadMethod: TypeAlias = Literal["dfr", "dispel", "logistic", "inferred"]
Penalty: TypeAlias = Literal["l1", "l2"]
DFR_C = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
"""The values of C of the DFR paper."""
L2_C = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
"""Default values of C of "inferred", which has an L2 penalty."""


@dataclass(frozen=True)
class HeadOptions:
    """Hyperparameters of `fit_head`. Of several values of `C`, `s` and `alpha`, the best combination is chosen.

    Attributes:
        C: Inverse strengths of the penalty, as in scikit-learn: C * sum(loss) + penalty is minimized. Positive.
        penalty: "l1" for |W|, "l2" for |W|^2 / 2.
        fits: Number of fits that are averaged, each on another random subset. Default: 10 for "dfr" and
            "inferred", 20 for "dispel". "logistic" is one fit.
        search_fits: Number of fits that are averaged for each setting of the search. Default: 10 for "dfr" and
            "inferred", 5 for "dispel".
        s: Weights of the donor in [0, 1], for "dispel". Default: those of SpuCo.
        alpha: Probabilities of mixing in [0, 1], for "dispel". Default: that of SpuCo.
        infer: Whether subsets are drawn from all examples, with inferred attributes, or from the attributed ones, for
            "inferred".
        seed: Random seed.
        tolerance: Relative decrease of the objective at which a fit ends.

    Example:
        >>> HeadOptions(C=[0.1], fits=1).penalty
        'l1'
    """

    C: Sequence[float] = DFR_C
    penalty: Penalty = "l1"
    fits: int | None = None
    search_fits: int | None = None
    s: Sequence[float] = (1.0, 0.9, 0.8, 0.7)
    alpha: Sequence[float] = (1.0,)
    infer: Sequence[bool] = (True, False)
    seed: int = 0
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TypeError: If a value has the wrong type.
            ValueError: If a value is out of range.
        """
        for c in self.C:
            checks.number(c, "C", positive=True)
        for name in ("s", "alpha"):
            for value in getattr(self, name):
                checks.number(value, name, 0, 1)
        for flag in self.infer:
            checks.flag(flag, "infer")
        for name in ("C", "s", "alpha", "infer"):
            if not len(getattr(self, name)):
                raise ValueError(f"{name} must have one value or more, got none")
        checks.choice(self.penalty, "penalty", get_args(Penalty))
        for name in ("fits", "search_fits"):
            if getattr(self, name) is not None:
                checks.integer(getattr(self, name), name, 1)
        checks.integer(self.seed, "seed", 0)
        checks.number(self.tolerance, "tolerance", positive=True)


def default_options(method: str) -> HeadOptions:
    """Return the options of a method for which none are given."""
    return HeadOptions(C=L2_C, penalty="l2") if method == "inferred" else HeadOptions()
