"""Runs the comparison of debiasing methods, and computes its tables.

Images and texts follow `spurmix.train.sweep.protocol`: trials on development seeds choose hyperparameters by the worst
group of the validation split, and reported seeds are tested. Feature settings follow `bench.debias.heads`, where the trials
of each seed are chosen by its validation split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from bench.debias import features, heads, images, texts
from bench.debias.features import Known
from spurmix.train.sweep.log import SweepLog, TrialRow
from spurmix.train.sweep.methods import METHODS
from spurmix.train.sweep.open import protocol_digest
from spurmix.train.sweep.protocol import SweepPlan, run_plan
from spurmix.train.sweep.statistics import COLUMNS, SweepRow, summarize_methods
from spurmix.train.sweep.task import SweepTask

DEVELOPMENT, REPORTED = (100, 101, 102), (200, 201, 202, 203, 204)


@dataclass(frozen=True)
class DebiasPlan:
    """What is compared.

    Attributes:
        settings: Names of settings, see `settings_of_kinds`.
        methods: Names of methods, of `spurmix.train.sweep.methods` or `bench.debias.heads`.
        known: Numbers of attributed examples per group.
        trials: Number of trials of each method on images and texts.
        development: Seeds of the trials.
        reported: Seeds of the results.
        scale: Amount of data and training of images.
        text_epochs: Epochs of training on texts.
        text_size: Number of training texts.
        digits: Folder with the test digits of MNIST for the feature settings. Default: the digits of scikit-learn.
    """

    settings: tuple[str, ...]
    methods: tuple[str, ...]
    known: tuple[Known, ...] = (100,)
    trials: int = 4
    development: tuple[int, ...] = DEVELOPMENT
    reported: tuple[int, ...] = REPORTED
    scale: images.ImageScale = field(default_factory=images.ImageScale)
    text_epochs: float = 20.0
    text_size: int = 3000
    digits: Path | None = None


def settings_of_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the settings of kinds of data, "images", "texts" and "features". Those of features start with "features-"."""
    names = {
        "images": tuple(images.SETTINGS),
        "texts": (texts.SETTING,),
        "features": tuple(f"features-{name}" for name in features.SETTINGS),
    }
    return tuple(itertools.chain.from_iterable(names[kind] for kind in kinds))


def run_debias(plan: DebiasPlan, path: Path | None, show: Callable[[str], None] = print) -> list[SweepRow]:
    """Run what the log does not have yet.

    Args:
        plan: What is compared.
        path: File of the log, JSON lines. None keeps results in memory only.
        show: Function that prints a line about each result.

    Returns:
        The results.
    """
    rows: list[SweepRow] = []
    for name, known in itertools.product(plan.settings, plan.known):
        if name.startswith("features-"):
            rows += _run_heads(plan, name, known, path, show)
            continue
        task_of: Callable[[int], SweepTask]
        if name == texts.SETTING:
            config, further = texts.text_config(plan.text_epochs), {"size": plan.text_size}
            task_of = partial(texts.make_text_task, known=known, epochs=plan.text_epochs, size=plan.text_size)
        else:
            config, further = images.image_config(plan.scale), asdict(plan.scale)
            task_of = partial(_image_task, name, known, plan.scale)
        log = SweepLog(path, protocol_digest(config, further))
        methods = tuple(method for method in plan.methods if method in METHODS)
        rows += run_plan(
            SweepPlan(methods, plan.trials, plan.development, plan.reported, name, known), task_of, log, show
        )
    return rows


def _image_task(name: str, known: Known, scale: images.ImageScale, seed: int) -> SweepTask:
    return images.make_image_task(images.SETTINGS[name], seed, known, scale)


def _run_heads(
    plan: DebiasPlan, name: str, known: Known, path: Path | None, show: Callable[[str], None]
) -> list[SweepRow]:
    """Run linear heads on a feature setting."""
    log = SweepLog(path, "heads-mnist" if plan.digits is not None else "heads")
    setting, rows = features.SETTINGS[name.removeprefix("features-")], []
    for seed, method in itertools.product(plan.reported, plan.methods):
        if method not in heads.METHODS:
            continue
        found = log.find("result", name, known, method, 0, seed)
        if found is None:
            (row,) = heads.compare_heads([seed], settings=[setting], methods=[method], known=known, digits=plan.digits)
            found = log.add(TrialRow(
                protocol=log.protocol, phase="result", setting=name, known=known, method=method, trial=0, seed=seed,
                values={}, validation=None, worst=row.worst, average=row.average, seconds=row.seconds,
            ))  # fmt: skip
            show(f"{name}, {known} attributed, seed {seed}, {method}: test worst group {100 * row.worst:.1f}%")
        rows.append(
            SweepRow(
                setting=name, method=method, seed=seed, known=known, worst=found["worst"], average=found["average"]
            )
        )
    return rows


def audit_table(rows: Iterable[SweepRow]) -> list[tuple[str, float, float, float]]:
    """Mean worst group of each policy, beside what its audit says.

    Args:
        rows: Results.

    Returns:
        Method, residual correlation, residual given lam, and worst group. Methods without a policy are left out.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        residuals = row.get("residual"), row.get("residual_given_lam")
        if residuals[0] is not None and residuals[1] is not None:
            found.setdefault(row["method"], []).append((residuals[0], residuals[1], row["worst"]))
    return [
        (name, *(sum(column) / len(values) for column in zip(*values, strict=True))) for name, values in found.items()
    ]  # type: ignore[misc]


def rank_correlations(table: Sequence[tuple[str, float, float, float]]) -> dict[str, dict[str, float]]:
    """Spearman correlation of 1 - residual with the worst group: 1 if a smaller residual always means a better worst group.

    Args:
        table: Result of `audit_table`.

    Returns:
        For "all" policies and the "debiasing" ones: the correlation of the residual and of the residual given lam. NaN for
        fewer than three policies, or if all values are equal.
    """
    from scipy.stats import rankdata

    def spearman(x: Sequence[float], y: Sequence[float]) -> float:
        if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
            return math.nan
        a, b = (ranks - ranks.mean() for ranks in (rankdata(x), rankdata(y)))
        return float(a @ b / (a @ a * (b @ b)) ** 0.5)

    parts = {"all": list(table), "debiasing": [line for line in table if METHODS[line[0]].debiases]}
    return {
        name: {
            key: spearman([-round(line[k], 6) for line in lines], [line[3] for line in lines])
            for key, k in (("residual", 1), ("residual_given_lam", 2))
        }
        for name, lines in parts.items()
    }


def markdown(rows: Sequence[SweepRow], reference: str = "erm") -> str:
    """Format all tables: a summary for each kind and number of attributed examples, each setting, and the audits."""
    parts = []
    for kind in ("images", "texts", "features"):
        names = set(settings_of_kinds([kind]))
        for known in dict.fromkeys(row["known"] for row in rows):
            mine = [row for row in rows if row["setting"] in names and row["known"] == known]
            settings = list(dict.fromkeys(row["setting"] for row in mine))
            if not mine:
                continue
            parts.append(f"## {kind}, {known} attributed examples per group: {', '.join(settings)}\n")
            body = [summary.cells() for summary in summarize_methods(mine, reference)]
            parts.append(_table([*COLUMNS[:4], f"difference from {reference}", COLUMNS[5]], body))
            if len(settings) > 1:
                parts.append(_by_setting(mine, settings))
    table = audit_table(rows)
    if table:
        parts.append("## Audits of the policies\n")
        parts.append(_table(
            ["policy", "residual", "residual given lam", "worst group"],
            [[n, f"{r:.3f}", f"{g:.3f}", f"{100 * w:.1f}"] for n, r, g, w in sorted(table, key=lambda line: -line[3])],
        ))  # fmt: skip
        parts += [
            f"Spearman correlation of a smaller residual with a better worst group, {name} policies: "
            f"{_number(values['residual'])}, given lam {_number(values['residual_given_lam'])}.\n"
            for name, values in rank_correlations(table).items()
        ]
    return "\n".join(parts)


def _number(value: float) -> str:
    return "not determined" if math.isnan(value) else f"{value:.2f}"


def _by_setting(rows: Sequence[SweepRow], settings: Sequence[str]) -> str:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    body = []
    for name in settings:
        found = {s.method: s.worst for s in summarize_methods(row for row in rows if row["setting"] == name)}
        body.append([name, *(f"{100 * found[m]:.1f}" if m in found else "" for m in methods)])
    return _table(["worst group", *methods], body)


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
