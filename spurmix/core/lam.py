"""Distributions of the mixing weight `lam`, stored as a quantile table that every backend reads the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spurmix.core import checks

ONE = 1 << 24
"""Fixed-point one: `lam` is a multiple of 2^-24."""
POINTS = 1025
"""Entries of a quantile table: the inverse CDF at k / 1024."""

FloatArray = NDArray[np.float64]


@runtime_checkable
class LamDistribution(Protocol):
    """A distribution on [0, 1], given by its inverse CDF."""

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        """The quantiles at `u` (float64, in [0, 1]), non-decreasing and in [0, 1]."""
        ...


class _Foldable:
    def folded(self) -> Folded:
        """The distribution of max(lam, 1 - lam): the index always carries the larger part."""
        return Folded(self)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Beta(_Foldable):
    """Beta(a, b), the usual choice of mixup; `b` defaults to `a`. Both must be positive and finite."""

    a: float
    b: float | None = None

    def __post_init__(self) -> None:
        if self.b is None:
            object.__setattr__(self, "b", self.a)
        for name in ("a", "b"):
            object.__setattr__(self, name, checks.number(getattr(self, name), f"Beta: {name}", positive=True))

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        from scipy.special import betaincinv

        return np.asarray(betaincinv(self.a, self.b, u), dtype=np.float64)

    def __repr__(self) -> str:
        return f"Beta({self.a:g}, {self.b:g})"


@dataclass(frozen=True)
class Uniform(_Foldable):
    """Uniform on [low, high], 0 <= low <= high <= 1."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, checks.number(getattr(self, name), f"Uniform: {name}"))
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(f"Uniform: need 0 <= low <= high <= 1, got low={self.low!r}, high={self.high!r}")

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        return self.low + (self.high - self.low) * u

    def __repr__(self) -> str:
        return f"Uniform({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class Fixed(_Foldable):
    """Always `value`, in [0, 1]."""

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", checks.number(self.value, "Fixed: value", 0, 1))

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        return np.full_like(u, self.value)

    def __repr__(self) -> str:
        return f"Fixed({self.value:g})"


@dataclass(frozen=True)
class InverseCDF(_Foldable):
    """Any distribution by its inverse CDF: a vectorised function on [0, 1], non-decreasing with values in [0, 1].

    Example: ``InverseCDF(lambda u: u ** 2)``.
    """

    function: Callable[[FloatArray], ArrayLike]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"InverseCDF: function must be callable, got {type(self.function).__name__}")

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        try:
            return np.asarray(self.function(u), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise type(error)(f"lam: the inverse CDF must make an array of numbers of one ({error})") from None


@dataclass(frozen=True)
class Folded:
    """max(lam, 1 - lam) for lam drawn from `base`."""

    base: LamDistribution

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        # The folded values of a fine, evenly weighted sample of the base, sorted, are its quantiles.
        fine = self.base.inverse_cdf((np.arange(1 << 20) + 0.5) / (1 << 20))
        ends = self.base.inverse_cdf(np.array([0.0, 1.0]))
        values = np.sort(np.maximum(fine, 1.0 - fine))
        values[-1] = max(values[-1], float(np.max(np.maximum(ends, 1.0 - ends))))
        return np.interp(u, np.linspace(0.0, 1.0, values.size), values)

    def __repr__(self) -> str:
        return f"{self.base!r}.folded()"


@dataclass(frozen=True)
class Scaled(_Foldable):
    """`factor` * lam, factor in [0, 1], made by scaling the quantile table of `base`."""

    base: LamDistribution
    factor: float

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        return np.interp(u, np.linspace(0.0, 1.0, POINTS), quantile_table(self.base) * self.factor / ONE)

    def __repr__(self) -> str:
        return f"{self.factor:.4g} * {self.base!r}"


def as_distribution(lam: object) -> LamDistribution:
    """`lam` as a distribution: a number means `Fixed`, a function its inverse CDF.

    Raises:
        TypeError: for anything else.
        ValueError: for a number outside [0, 1].
    """
    if isinstance(lam, LamDistribution):
        return lam
    if isinstance(lam, (int, float, np.floating, np.integer)) and not isinstance(lam, bool):
        return Fixed(checks.number(lam, "lam", 0, 1))
    if callable(lam):
        return InverseCDF(lam)
    raise TypeError(
        "lam must be a distribution (Beta, Uniform, Fixed, InverseCDF), a number in [0, 1] or an inverse CDF, "
        f"got {type(lam).__name__}"
    )


def quantile_table(distribution: LamDistribution) -> NDArray[np.int64]:
    """The table of `distribution`: int64 `[1025]`, 2^24 * inverse CDF(k / 1024) rounded half to even.

    Raises:
        ValueError: if the inverse CDF leaves [0, 1], decreases, is not finite or has the wrong shape.
    """
    values = distribution.inverse_cdf(np.arange(POINTS, dtype=np.float64) / (POINTS - 1))
    if values.shape != (POINTS,):
        raise ValueError(
            f"lam: the inverse CDF returned shape {values.shape} for {POINTS} points, expected ({POINTS},)"
        )
    if not np.all(np.isfinite(values)):
        raise ValueError("lam: the inverse CDF returned a value that is not finite")
    if values.min() < 0.0 or values.max() > 1.0:
        raise ValueError(
            f"lam: the inverse CDF must stay in [0, 1], got values from {values.min():g} to {values.max():g}"
        )
    if np.any(np.diff(values) < 0):
        k = int(np.argmax(np.diff(values) < 0))
        raise ValueError(f"lam: the inverse CDF must not decrease, but does between {k}/1024 and {k + 1}/1024")
    return np.rint(values * ONE).astype(np.int64)


def moments(quantile: NDArray[np.int64]) -> tuple[float, float]:
    """E[lam] and E[lam^2] of draws from the table, which interpolate linearly between its points."""
    low, high = quantile[:-1] / ONE, quantile[1:] / ONE
    return float(np.mean(low + high) / 2), float(np.mean(low * low + low * high + high * high) / 3)
