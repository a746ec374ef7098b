"""L1 and L2 logistic regressions along paths of penalties, many problems at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.cells import host_module
from spurmix.core.progress import bar
from spurmix.train.heads import reference
from spurmix.train.heads.problem import HeadProblem, PenaltyPath
from spurmix.train.heads.rows import HeadRows


def fit_paths(
    problem: HeadProblem, rows: Sequence[HeadRows], *, name: str, progress: bool | None = None
) -> list[PenaltyPath]:
    """Minimize `sum(loss) + l1 * |W|_1 + l2 / 2 * |W|^2` for each set of rows and each step of the path.

    The loss is the logistic loss for two classes, and the cross-entropy of the softmax for more. The intercept is
    penalized like the other weights, as in LIBLINEAR. Each problem is solved in one thread, and
    `torch.get_num_threads()` problems at a time, so the result does not depend on the number of threads. Besides the
    features, each thread needs memory for a bfloat16 copy of its rows.

    Args:
        problem: Features, penalties and stopping rule.
        rows: HeadRows of each problem.
        name: Label of the progress bar.
        progress: Whether to show a progress bar. Default: only on a terminal.

    Returns:
        The path of each problem.
    """
    solve = _compiled if host_module() is not None else reference.fit_path
    if not rows:
        return []

    def paths() -> Iterator[PenaltyPath]:
        with ThreadPoolExecutor(min(len(rows), torch.get_num_threads())) as pool:
            yield from pool.map(lambda own: PenaltyPath(*solve(problem, own)), rows)

    return list(bar(paths(), name, total=len(rows), size=1, unit="fits", shown=progress))


def _compiled(problem: HeadProblem, rows: HeadRows) -> tuple[FloatArray, FloatArray, Int64Array]:
    host = host_module()
    assert host is not None
    standard = problem.standardization
    weight, objective, iterations = host.logistic_path(
        problem.features, standard.mean, standard.inverse_scale, rows.index, rows.partner, rows.share, rows.label,
        problem.num_classes, problem.l1, problem.l2, problem.tolerance, problem.max_iterations,
    )  # fmt: skip
    return weight.reshape(len(problem.l1), problem.num_functions, -1), objective, iterations
