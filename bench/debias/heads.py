"""Methods that train a linear head, compared on the feature settings with the same information and number of trials.

    python -m bench.debias.heads --seeds 200 201 202 203 204 --digits FOLDER

Each method has `TRIALS` trials. The one with the best worst group of the validation split is kept, ties by the mean of the
groups. Rows have the accuracy of the worst group and the mean accuracy on the test split. Features are standardized on the
training split. Development seeds are 100 to 102, and test seeds 200 to 204.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from torch import nn

from bench.debias.features import SETTINGS, FeatureData, FeatureSplit, Known, Setting, make_features
from spurmix import FeatureSource, HeadOptions, MixLoader, finetune, fit_head, policies
from spurmix.core.policy import MixPolicy
from spurmix.train.heads.options import DFR_C, HeadMethod
from spurmix.train.heads.rows import Standardization

TRIALS = 8
"""Number of trials of each method."""
BATCH, STEPS = 256, 100
"""Size and number of batches of a trial by SGD."""
RATES, DECAYS = (3e-3, 1e-2, 3e-2, 1e-1), (1e-2, 1.0)
"""Learning rates and weight decays of the trials by SGD."""
FEW_C = (1.0, 0.1, 0.01, 0.001)

Head = Callable[[torch.Tensor], torch.Tensor]
"""Maps features `[N, D]` to logits `[N, C]`."""
Trials = Callable[[FeatureData, int], Head]
"""Runs the trials of a method with a seed, and returns the head that the validation split chooses."""


@dataclass(frozen=True)
class HeadRow:
    """Result of a method on a setting.

    Attributes:
        setting: Name of the setting.
        method: Name of the method.
        seed: Random seed of the data and of the method.
        known: Number of attributed examples of each group, or "all".
        worst: Accuracy of the worst group of the test split.
        average: Mean accuracy of its groups.
        seconds: Duration of the trials.
    """

    setting: str
    method: str
    seed: int
    known: Known
    worst: float
    average: float
    seconds: float


def group_accuracies(head: Head, split: FeatureSplit) -> list[float]:
    """Accuracy of each group of a split."""
    with torch.no_grad():
        correct = head(torch.from_numpy(split.features)).argmax(dim=1).numpy() == split.groups.labels
    return [float(correct[split.groups.examples(g)].mean()) for g in range(split.groups.num_groups)]


def _fitted(method: HeadMethod, *options: HeadOptions) -> Trials:
    """Trials by `fit_head`. Each of the options is a search, and the best of their best trials is kept."""

    def run(data: FeatureData, seed: int) -> Head:
        heads = []
        for given in options:
            chosen = HeadOptions(**{**vars(given), "seed": seed})
            train, held_out = data.train, (data.validation.features, data.validation.groups)
            head = fit_head(train.features, train.groups, method, validation=held_out, options=chosen, progress=False)
            assert head.best is not None
            heads.append((head.best.worst_group, head.best.average, head))
        return max(heads, key=lambda entry: entry[:2])[2].logits

    return run


def _trained(policy: MixPolicy) -> Trials:
    """Trials by SGD on the samples of a policy."""

    def run(data: FeatureData, seed: int) -> Head:
        train, heads = data.train, []
        for rate, decay in itertools.product(RATES, DECAYS):
            layer = nn.Linear(train.features.shape[1], train.groups.num_classes)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            loader = MixLoader(FeatureSource(train.features), train.groups, policy, BATCH, seed=seed, steps=STEPS)
            finetune(layer, loader, learning_rate=rate, weight_decay=decay, schedule="cosine", progress=False)
            layer.eval()
            accuracies = group_accuracies(layer, data.validation)
            heads.append((min(accuracies), mean(accuracies), layer))
        return max(heads, key=lambda entry: entry[:2])[2]

    return run


METHODS: dict[str, Trials] = {
    "erm": _fitted("logistic", *(HeadOptions(C=FEW_C, penalty=penalty) for penalty in ("l1", "l2"))),  # type: ignore[arg-type]
    "attributed_balanced": _trained(policies.group_balanced()),
    "group_balanced": _trained(policies.group_balanced(unknown="bulk")),
    "balance_attributes": _trained(policies.balance_attributes()),
    "selecmix": _trained(policies.selecmix()),
    "dispel": _fitted("dispel", HeadOptions(C=(0.1, 0.01), s=(1.0, 0.9, 0.8, 0.7), alpha=(1.0,), search_fits=3)),
    "dfr": _fitted("dfr", HeadOptions(C=(*DFR_C, 0.003))),
    "dfr_l2": _fitted("dfr", HeadOptions(C=(*DFR_C, 0.001), penalty="l2")),
    "inferred": _fitted("inferred", HeadOptions(C=FEW_C, penalty="l2")),
}
"""Methods by name."""


def standardized(data: FeatureData) -> FeatureData:
    """Standardize features by the training split."""
    scale = Standardization.of(data.train.features, np.arange(len(data.train.features)))
    splits = (FeatureSplit(scale.apply(s.features), s.groups) for s in (data.train, data.validation, data.test))
    return FeatureData(data.name, *splits)


def compare_heads(
    seeds: Iterable[int],
    *,
    settings: Iterable[Setting] = tuple(SETTINGS.values()),
    methods: Sequence[str] = tuple(METHODS),
    known: Known = 100,
    digits: str | Path | None = None,
) -> Iterator[HeadRow]:
    """Run methods on settings.

    Args:
        seeds: Random seeds.
        settings: The settings.
        methods: Names of the methods.
        known: Number of attributed examples of each group, or "all".
        digits: Folder with the test digits of MNIST, see `make_features`.

    Yields:
        A row for each setting, seed and method.
    """
    for seed, setting in itertools.product(seeds, settings):
        data = standardized(make_features(setting, seed, known=known, digits=digits))
        for method in methods:
            start = time.perf_counter()
            accuracies = group_accuracies(METHODS[method](data, seed), data.test)
            seconds = time.perf_counter() - start
            yield HeadRow(setting.name, method, seed, known, min(accuracies), mean(accuracies), seconds)


def markdown(rows: Sequence[HeadRow]) -> str:
    """Format the mean worst group of each setting and method as a table, with standard errors over seeds."""
    methods, names = list(dict.fromkeys(r.method for r in rows)), list(dict.fromkeys(r.setting for r in rows))
    lines = ["| setting | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    means: dict[str, list[float]] = {method: [] for method in methods}
    for name in names:
        cells = []
        for method in methods:
            values = [100 * r.worst for r in rows if (r.setting, r.method) == (name, method)]
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            means[method].append(mean(values))
            cells.append(f"{mean(values):.1f} ({error:.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("| **mean** | " + " | ".join(f"**{mean(values):.2f}**" for values in means.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the comparison, print a table, and write the rows as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[200, 201, 202, 203, 204])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--known", default="100", help='attributed examples of each group, or "all"')
    parser.add_argument("--digits", type=Path, help="folder with the test digits of MNIST")
    parser.add_argument("--out", type=Path, help="file to append the rows to")
    given = parser.parse_args()
    known: Known = "all" if given.known == "all" else int(given.known)
    rows = []
    for row in compare_heads(
        given.seeds, settings=[SETTINGS[n] for n in given.settings], methods=given.methods, known=known,
        digits=given.digits,
    ):  # fmt: skip
        rows.append(row)
        if given.out is not None:
            with given.out.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
