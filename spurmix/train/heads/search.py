"""Fits the settings of a search, and chooses the one with the best worst group."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from spurmix.core.array_types import FloatArray
from spurmix.train.heads.attributes import infer_attributes
from spurmix.train.heads.options import HeadMethod, HeadOptions
from spurmix.train.heads.problem import HeadProblem
from spurmix.train.heads.result import HeadFit, HeadTrial
from spurmix.train.heads.rows import Features, HeadRows, Standardization
from spurmix.train.heads.samples import HeadSamples
from spurmix.train.heads.solver import fit_paths
from spurmix.train.heads.validation import HeldOut

FITS = {"dfr": (10, 10), "dispel": (20, 5), "logistic": (1, 1), "inferred": (10, 10)}
"""Default number of fits, and of fits per setting of the search."""


@dataclass(frozen=True)
class _Draws:
    """How the rows of a fit are drawn, with the hyperparameters of the draw and the standardization."""

    rows: Callable[[np.random.Generator], HeadRows]
    values: dict[str, float]
    standardization: Standardization


@dataclass(frozen=True)
class HeadSearch:
    """Fits heads of one method on one feature matrix.

    Attributes:
        features: float32 `[N, D]`.
        method: The method.
        options: Hyperparameters.
        progress: Whether to show progress bars.
    """

    features: Features
    method: HeadMethod
    options: HeadOptions
    progress: bool | None

    @property
    def strengths(self) -> tuple[float, ...]:
        """Values of C, ascending: each solution is the start of the next."""
        return tuple(sorted({float(c) for c in self.options.C}))

    @property
    def num_settings(self) -> int:
        """Number of settings of the search."""
        draws = {"dispel": len(self.options.s) * len(self.options.alpha), "inferred": len(set(self.options.infer))}
        return draws.get(self.method, 1) * len(self.strengths)

    def choose(self, samples: HeadSamples, held_out: HeldOut) -> tuple[HeadTrial, tuple[HeadTrial, ...]]:
        """Fit all settings, and return the best trial and all trials."""
        count = self.options.search_fits or FITS[self.method][1]
        trials = []
        for draws in self._draws(samples):
            weights = self._mean_path(draws, samples.groups.num_classes, self.strengths, count)
            accuracies = held_out.accuracies(draws.standardization, weights)
            for c, weight, accuracy in zip(self.strengths, weights, accuracies, strict=True):
                nonzero = float(np.mean(weight[:, :-1] != 0))
                trials.append(
                    HeadTrial({"C": c, **draws.values}, float(accuracy.min()), float(accuracy.mean()), nonzero)
                )
        best = max(trials, key=lambda trial: (trial.worst_group, trial.average, -trial.settings["C"]))
        return best, tuple(trials)

    def fit(self, samples: HeadSamples, settings: dict[str, float] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit the head of one setting. None is the only one. Returns weights `[C, D]` and biases `[C]`."""
        draws = self._draws(samples)
        c = self.strengths[-1] if settings is None else settings["C"]
        chosen = next(
            d for d in draws if settings is None or all(settings[name] == value for name, value in d.values.items())
        )
        count = self.options.fits or FITS[self.method][0]
        path = tuple(value for value in self.strengths if value <= c)
        weight = self._mean_path(chosen, samples.groups.num_classes, path, count)[-1]
        return chosen.standardization.unstandardized(weight)

    def _draws(self, samples: HeadSamples) -> list[_Draws]:
        everything = partial(Standardization.of, self.features)
        if self.method == "dispel":
            standardization = everything(samples.chosen)
            return [
                _Draws(
                    partial(samples.dispel, s=s, alpha=alpha), {"s": float(s), "alpha": float(alpha)}, standardization
                )
                for s, alpha in itertools.product(self.options.s, self.options.alpha)
            ]
        if self.method == "logistic":
            return [_Draws(lambda _: samples.rows_of(samples.chosen), {}, everything(samples.chosen))]
        if self.method == "dfr":
            return [_Draws(samples.balanced_rows, {}, everything(samples.known))]
        draws, choices = [], sorted(set(self.options.infer))
        if samples.known.size == samples.chosen.size:
            choices = choices[:1]  # there is nothing to infer
        for infer in choices:
            own = infer_attributes(self.features, samples, self.options, self.progress) if infer else samples
            draws.append(_Draws(own.balanced_rows, {"infer": float(infer)}, everything(own.known)))
        return draws

    def _mean_path(
        self,
        draws: _Draws,
        num_classes: int,
        strengths: tuple[float, ...],
        count: int,
    ) -> FloatArray:
        """Mean weights of `count` fits for each strength, `[L, K, D + 1]`."""
        penalties, zeros = tuple(1.0 / c for c in strengths), (0.0,) * len(strengths)
        l1, l2 = (penalties, zeros) if self.options.penalty == "l1" else (zeros, penalties)
        if not draws.standardization.inverse_scale.any():
            raise ValueError("features must differ between examples, but every feature is constant")
        problem = HeadProblem(self.features, draws.standardization, num_classes, l1, l2, self.options.tolerance)
        rows = [draws.rows(np.random.default_rng([self.options.seed, 0, k])) for k in range(count)]
        name = " ".join([self.method, *(f"{key}={value:g}" for key, value in draws.values.items())])
        paths = fit_paths(problem, rows, name=name, progress=self.progress)
        mean: FloatArray = np.mean([path.weight for path in paths], axis=0)
        return mean


def result(search: HeadSearch, samples: HeadSamples, best: HeadTrial | None, trials: tuple[HeadTrial, ...]) -> HeadFit:
    """Fit the chosen setting on `samples`."""
    weight, bias = search.fit(samples, None if best is None else best.settings)
    return HeadFit(search.method, weight, bias, best, trials)
