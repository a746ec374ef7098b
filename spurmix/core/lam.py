"""Distributions of the mixing weight `lam`, stored as a quantile table that every backend reads the same way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from spurmix.core import checks
from spurmix.core.array_types import FloatArray, Int64Array

ONE = 1 << 24
"""Fixed-point representation of 1. `lam` is a multiple of 2^-24."""
POINTS = 1025
"""Number of points of a quantile table: the inverse CDF at k / 1024."""


@runtime_checkable
class LamDistribution(Protocol):
    """A distribution on [0, 1], given by its inverse CDF."""

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        """Return the quantiles at `u`.

        Args:
            u: Probabilities in [0, 1], float64.

        Returns:
            Non-decreasing values in [0, 1], in the shape of `u`.
        """
        ...


LamLike: TypeAlias = LamDistribution | float | Callable[[FloatArray], ArrayLike]
"""A distribution, a number in [0, 1], or an inverse CDF."""


class _Foldable:
    def folded(self: LamDistribution) -> Folded:
        """Return the distribution of max(lam, 1 - lam), in which the index always has the larger weight."""
        return Folded(self)


@dataclass(frozen=True)
class Beta(_Foldable):
    """Beta distribution, as used by mixup.

    lam is drawn from a table of 1025 quantiles. Its mean differs from a / (a + b) by at most 1/2048. The difference is large
    only for parameters far below 1, for which lam jumps from 0 to 1 between two quantiles.

    Args:
        a: First shape parameter, positive and finite.
        b: Second shape parameter, positive and finite. Default: `a`.

    Raises:
        TypeError: If a parameter is not a number.
        ValueError: If a parameter is not positive and finite.

    Example:
        >>> Beta(0.4), Beta(2, 5)
        (Beta(0.4, 0.4), Beta(2, 5))
    """

    a: float
    b: float | None = None

    def __post_init__(self) -> None:
        if self.b is None:
            object.__setattr__(self, "b", self.a)
        for name in ("a", "b"):
            object.__setattr__(self, name, checks.number(getattr(self, name), f"Beta: {name}", positive=True))

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        """Return the quantiles at `u`."""
        from scipy.special import betaincinv

        a, b = self.a, self.b if self.b is not None else self.a
        # Outside of this range, betaincinv is wrong, overflows, or does not end.
        if max(a, b) < TINY:
            a, b = a * (TINY / max(a, b)), b * (TINY / max(a, b))
        if min(a, b) > LARGE:
            return _normal_limit(a, b, u)
        if max(a, b) > max(SKEWED * min(a, b), 1e8):
            return _gamma_limit(a, b, u) if a < b else 1.0 - _gamma_limit(b, a, 1.0 - u)
        return np.asarray(betaincinv(a, b, u), dtype=np.float64)

    def end_points(self, second: float, last_but_one: float) -> tuple[float, float]:
        """Return the first and the last point of the quantile table, given their neighbors.

        They are 0 and 1, unless the mean of the interpolated bucket at this end is then more than 5 standard deviations
        of the distribution away from the mean of the distribution in this bucket. The point is then the value for which
        both means are equal.
        """
        a, b = self.a, self.b if self.b is not None else self.a
        return _first_point(a, b, second), 1.0 - _first_point(b, a, 1.0 - last_but_one)

    def __repr__(self) -> str:
        return f"Beta({self.a:g}, {self.b:g})"


TINY = 1e-300
"""A beta distribution of two smaller parameters is 0 or 1 to 2^-24, with probabilities that depend on their ratio only."""
LARGE = 1e10
"""A beta distribution of two larger parameters is normal to 2^-24, apart from its skewness."""
SKEWED = 1e5
"""If b is this much larger than a, and at least 10^8, b times a Beta(a, b) variable has a gamma distribution to 2^-24."""


def _normal_limit(a: float, b: float, u: FloatArray) -> FloatArray:
    """Quantiles of Beta(a, b) for large a and b, by the Cornish-Fisher expansion to the skewness."""
    from scipy.special import ndtri

    mean = 1.0 / (1.0 + b / a)
    scale = math.sqrt(mean * (1.0 - mean) / (a + b + 1.0))
    skewness = 2.0 * (1.0 - 2.0 * mean) * scale / max(mean * (1.0 - mean), 1e-300)
    inside = (u > 0.0) & (u < 1.0)
    z = ndtri(np.where(inside, u, 0.5))
    return np.where(inside, np.clip(mean + scale * (z + skewness / 6.0 * (z * z - 1.0)), 0.0, 1.0), u)


def _gamma_limit(a: float, b: float, u: FloatArray) -> FloatArray:
    """Quantiles of Beta(a, b) for b much larger than a."""
    from scipy.special import gammaincinv

    inside = (u > 0.0) & (u < 1.0)
    gamma = gammaincinv(max(a, 1e-300), np.where(inside, u, 0.5))
    return np.where(inside, np.minimum(gamma / b, 1.0), u)


FAR = 5.0
"""Maximum distance between the interpolated and the true mean of the first bucket, in standard deviations."""


def _first_point(a: float, b: float, second: float) -> float:
    """Return the first point of the quantile table of Beta(a, b), see `Beta.end_points`."""
    far = FAR * math.sqrt(1.0 / (1.0 + b / a) / (1.0 + a / b) / (a + b + 1.0))
    if second / 2.0 <= far:
        return 0.0
    # The mean of the bucket [0, 1/1024]: Gauss quadrature on its parts [2^-k, 2^-k+1] / 1024.
    nodes, weights = np.polynomial.legendre.leggauss(4)
    starts = 2.0 ** -np.arange(1.0, 25.0)
    u = starts[:, None] * (1.5 + nodes / 2.0) / (POINTS - 1)
    mean = float(starts @ Beta(a, b).inverse_cdf(u) @ weights / (2.0 * starts.sum()))
    return 0.0 if mean - second / 2.0 <= far else min(max(2.0 * mean - second, 0.0), second)


@dataclass(frozen=True)
class Uniform(_Foldable):
    """Uniform distribution on [low, high].

    Args:
        low: Lower bound, in [0, 1].
        high: Upper bound, in [low, 1].

    Raises:
        TypeError: If a bound is not a number.
        ValueError: If the bounds do not satisfy 0 <= low <= high <= 1.

    Example:
        >>> Uniform(0.5, 1)
        Uniform(0.5, 1)
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, checks.number(getattr(self, name), f"Uniform: {name}"))
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(
                f"Uniform: low and high must satisfy 0 <= low <= high <= 1, got {self.low!r}, {self.high!r}"
            )

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        """Return the quantiles at `u`."""
        return self.low + (self.high - self.low) * u

    def __repr__(self) -> str:
        return f"Uniform({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class Fixed(_Foldable):
    """The same weight for every sample.

    Args:
        value: The weight, in [0, 1].

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If `value` is outside [0, 1].

    Example:
        >>> Fixed(0.25)
        Fixed(0.25)
    """

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", checks.number(self.value, "Fixed: value", 0, 1))

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        """Return the quantiles at `u`."""
        return np.full_like(u, self.value)

    def __repr__(self) -> str:
        return f"Fixed({self.value:g})"


@dataclass(frozen=True)
class TwoPoint(_Foldable):
    """One of two weights: `low` with probability `p`, else `high`.

    A quantile table has no jumps. The jump from `low` to `high` is a ramp between neighboring points, which is at most
    2/1024 wide, and the mean is exact. So at most 1 of 512 samples has a weight between the two.

    Args:
        low: The smaller weight, in [0, 1].
        high: The larger weight, in [low, 1].
        p: Probability of `low`, in [0, 1].

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of range.

    Example:
        >>> TwoPoint(0.25, 1, 0.5)
        TwoPoint(0.25, 1, 0.5)
    """

    low: float
    high: float
    p: float

    def __post_init__(self) -> None:
        for name in ("low", "high", "p"):
            object.__setattr__(self, name, checks.number(getattr(self, name), f"TwoPoint: {name}", 0, 1))
        if self.low > self.high:
            raise ValueError(f"TwoPoint: low must be at most high, got {self.low!r}, {self.high!r}")

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        """Return the quantiles at `u`."""
        # `step` is the share of the way from low to high at k / 1024. Its mean must be 1 - p.
        position = self.p * (POINTS - 1)
        step = np.clip(np.arange(POINTS) - position + 0.5, 0.0, 1.0)
        if position < 0.5:
            step[0] = 1.0 - 2.0 * position
        elif position > POINTS - 1.5:
            step[-1] = 2.0 * (POINTS - 1 - position)
        value = self.low + (self.high - self.low) * step
        return np.interp(u, np.linspace(0.0, 1.0, POINTS), np.minimum(value, self.high))

    def __repr__(self) -> str:
        return f"TwoPoint({self.low:g}, {self.high:g}, {self.p:g})"


@dataclass(frozen=True)
class InverseCDF(_Foldable):
    """Any distribution on [0, 1], given by its inverse CDF.

    Args:
        function: Vectorized function from float64 probabilities in [0, 1] to values in [0, 1]. It must not decrease. It
            is evaluated at k / 1024 and interpolated linearly, also to the values at 0 and 1. For a narrow distribution
            these should be close to their neighbors, for example `lambda u: ppf(np.clip(u, 5e-4, 1 - 5e-4))`.

    Raises:
        TypeError: If `function` is not callable.

    Example:
        >>> lam = InverseCDF(lambda u: u**2)
        >>> quantile_table(lam)[512] / 2**24
        np.float64(0.25)
    """

    function: Callable[[FloatArray], ArrayLike]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"InverseCDF: function must be callable, got {type(self.function).__name__}")

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        """Return the quantiles at `u`."""
        try:
            return np.asarray(self.function(u), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise type(error)(f"lam: the inverse CDF must map an array of numbers to another ({error})") from None


@dataclass(frozen=True)
class Folded:
    """Distribution of max(lam, 1 - lam) for lam drawn from `base`. `folded()` of a distribution makes it."""

    base: LamDistribution

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        """Return the quantiles at `u`."""
        # The sorted folded values of a fine, evenly spaced sample of the base are its quantiles.
        fine = _fine_quantiles(self.base, (np.arange(1 << 20) + 0.5) / (1 << 20))
        ends = quantile_table(self.base)[[0, -1]] / ONE
        values = np.sort(np.maximum(fine, 1.0 - fine))
        values[-1] = max(values[-1], float(np.max(np.maximum(ends, 1.0 - ends))))
        return np.interp(u, np.linspace(0.0, 1.0, values.size), values)

    def __repr__(self) -> str:
        return f"{self.base!r}.folded()"


def _fine_quantiles(base: LamDistribution, u: FloatArray) -> FloatArray:
    """Return many quantiles. Those of a narrow beta distribution take up to 0.5 ms each, and are interpolated."""
    if not isinstance(base, Beta) or max(base.a, base.b or base.a) <= 1e3:
        return base.inverse_cdf(u)
    from scipy.special import ndtr, ndtri

    z = np.linspace(-6.0, 6.0, 2049)  # a narrow beta distribution is almost linear in the quantiles of the normal one
    return np.interp(ndtri(u), z, base.inverse_cdf(ndtr(z)))


@dataclass(frozen=True)
class Scaled(_Foldable):
    """Distribution of factor * lam for lam drawn from `base`, made by scaling the quantile table of `base`."""

    base: LamDistribution
    factor: float

    def inverse_cdf(self, u: FloatArray) -> FloatArray:
        """Return the quantiles at `u`."""
        return np.interp(u, np.linspace(0.0, 1.0, POINTS), quantile_table(self.base) * self.factor / ONE)

    def __repr__(self) -> str:
        return f"{self.factor:.4g} * {self.base!r}"


def as_distribution(lam: object) -> LamDistribution:
    """Return `lam` as a distribution: a number as `Fixed`, a function as `InverseCDF`.

    Raises TypeError if it is anything else, and ValueError if a number is outside [0, 1].
    """
    if isinstance(lam, LamDistribution):
        return lam
    if isinstance(lam, (int, float, np.floating, np.integer)) and not isinstance(lam, bool):
        return Fixed(checks.number(lam, "lam", 0, 1))
    if callable(lam):
        return InverseCDF(lam)
    raise TypeError(
        "lam must be a distribution (Beta, Uniform, Fixed, TwoPoint, InverseCDF), a number in [0, 1] or an inverse CDF, "
        f"got {type(lam).__name__}"
    )


def quantile_table(distribution: LamDistribution) -> Int64Array:
    """Return the quantile table of a distribution.

    Args:
        distribution: The distribution.

    Returns:
        2^24 * inverse CDF(k / 1024), rounded half to even, int64 `[1025]`. `Beta.end_points` gives the ends of `Beta`.

    Raises:
        TypeError: If the inverse CDF does not return numbers.
        ValueError: If the inverse CDF leaves [0, 1], decreases by more than rounding, is not finite or returns a wrong
            shape.
    """
    values = distribution.inverse_cdf(np.arange(POINTS, dtype=np.float64) / (POINTS - 1))
    if isinstance(distribution, Beta):
        values[0], values[-1] = distribution.end_points(float(values[1]), float(values[-2]))
    if values.shape != (POINTS,):
        raise ValueError(f"lam: the inverse CDF must return shape ({POINTS},) for {POINTS} points, got {values.shape}")
    if not np.all(np.isfinite(values)):
        raise ValueError("lam: the inverse CDF returned a value that is not finite")
    if values.min() < 0.0 or values.max() > 1.0:
        raise ValueError(
            f"lam: the inverse CDF must stay in [0, 1], got values from {values.min():g} to {values.max():g}"
        )
    ascending = np.maximum.accumulate(values)
    decreases = ascending - values > 0.5 / ONE  # smaller decreases are rounding errors of the inverse CDF
    if decreases.any():
        k = int(np.argmax(decreases)) - 1
        raise ValueError(f"lam: the inverse CDF must not decrease, but it does between {k}/1024 and {k + 1}/1024")
    return np.rint(ascending * ONE).astype(np.int64)


def moments(quantile: Int64Array) -> tuple[float, float]:
    """E[lam] and E[lam^2] under a quantile table, which is interpolated linearly."""
    low, high = quantile[:-1] / ONE, quantile[1:] / ONE
    return float(np.mean(low + high) / 2), float(np.mean(low * low + low * high + high * high) / 3)
