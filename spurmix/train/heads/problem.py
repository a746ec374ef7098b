"""A family of logistic regressions that differ in their rows, and the solutions of one of them."""

from __future__ import annotations

from dataclasses import dataclass

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.train.heads.rows import Features, Standardization


@dataclass(frozen=True)
class PenaltyPath:
    """Solutions of one problem for a sequence of penalties.

    Attributes:
        weight: Weights of the standardized features and the intercept, float64 `[L, K, D + 1]`. K is 1 for two classes
            (the logit of class 1), else the number of classes.
        objective: Loss plus penalties, float64 `[L]`.
        iterations: Newton iterations, int64 `[L]`.
    """

    weight: FloatArray
    objective: FloatArray
    iterations: Int64Array


@dataclass(frozen=True)
class HeadProblem:
    """What all problems of a call have in common.

    Attributes:
        features: float32 `[N, D]`.
        standardization: Standardization of the features.
        num_classes: Number of classes, 2 or more.
        l1: L1 penalties along the path, `[L]`.
        l2: L2 penalties along the path, `[L]`.
        tolerance: A step of the path ends when a Newton iteration decreases the objective by less, relative to it.
        max_iterations: Maximum number of Newton iterations per step.
    """

    features: Features
    standardization: Standardization
    num_classes: int
    l1: tuple[float, ...]
    l2: tuple[float, ...]
    tolerance: float = 1e-4
    max_iterations: int = 1000

    @property
    def num_functions(self) -> int:
        """Number of linear functions: 1 for two classes."""
        return 1 if self.num_classes == 2 else self.num_classes
