"""Fits heads by DFR, DISPEL or plain logistic regression, and chooses hyperparameters on held-out attributed examples."""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.train.heads.options import HeadMethod, HeadOptions, default_options
from spurmix.train.heads.result import HeadFit
from spurmix.train.heads.rows import Features
from spurmix.train.heads.samples import HeadSamples
from spurmix.train.heads.search import HeadSearch, result
from spurmix.train.heads.validation import HeldOut, halves


def fit_head(
    features: Tensor | ArrayLike,
    groups: GroupIndex,
    method: HeadMethod = "dfr",
    *,
    validation: tuple[Tensor | ArrayLike, GroupIndex] | None = None,
    options: HeadOptions | None = None,
    progress: bool | None = None,
) -> HeadFit:
    """Fit a linear head on features by penalized logistic regression.

    Features are standardized. `method` decides the rows of each fit:

    - "dfr" (Deep Feature Reweighting): a random subset of the attributed examples with equally many of each group.
    - "dispel": a class-balanced random subset of all examples. With probability alpha, an example x becomes
      s * donor + (1 - s) * x and keeps its label. The donor is an example of its class from a group-balanced subset of the
      attributed examples. With s = alpha = 1 only donors are seen, as in DFR, but each of them many times, so that the same
      C penalizes less.
    - "inferred": the subsets of "dfr", drawn from all examples, with unknown attributes inferred by a logistic regression on
      the attributed examples, or from the attributed examples only. The validation examples decide. By default, the
      penalty is L2. It helps most with few attributed examples, if the attribute can be read from the features.
    - "logistic": all examples, once. This is the head that ERM would train.

    The weights are the mean of several fits. If there are several settings, each is fitted, and the one with the best worst
    group of the validation examples is chosen. Ties are decided by the mean accuracy of the groups, then by the
    stronger penalty.

    Args:
        features: Features of the training examples, `[N, D]`, such as the result of `extract_features`.
        groups: Groups of the training examples. Examples of unknown attribute are bulk examples of "dispel",
            "inferred" and "logistic". "dfr" does not use them.
        method: "dfr", "dispel", "logistic" or "inferred".
        validation: Features and groups of held-out examples. Default: a random half of the attributed examples of each
            group; the chosen setting is then fitted again on all examples.
        options: Hyperparameters.
        progress: Whether to show progress bars. Default: only on a terminal.

    Returns:
        The head, and the trials of the search.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If features are not finite or do not fit the groups, a class has no attributed example, a group has
            no validation example, or `method` is unknown.

    Example:
        >>> features = extract_features(model, images)  # doctest: +SKIP
        >>> head = fit_head(features, groups, "dfr")  # doctest: +SKIP
        >>> head.copy_to(models.head_layer(model))  # doctest: +SKIP

    References:
        Kirichenko, Izmailov and Wilson, Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations,
        ICLR 2023, arXiv 2204.02937 (DFR). Xue et al., arXiv 2305.14521 v1, 2023, and the last-layer retraining of the
        authors' package SpuCo (DISPEL).
    """
    checks.choice(method, "method", get_args(HeadMethod))
    chosen = options if options is not None else default_options(method)
    x = checked_features(features, groups, "features")
    if np.unique(groups.labels).size < 2:
        raise ValueError("a head requires examples of two classes or more")
    if len(x) < groups.num_classes:
        raise ValueError(
            f"a head requires one example of each class or more, got {len(x)} of {groups.num_classes} classes"
        )
    samples = HeadSamples(groups, np.arange(len(x), dtype=np.int64), method)
    search = HeadSearch(x, method, chosen, progress)
    if method != "logistic" or (validation is None and search.num_settings > 1):
        samples.check()
    if validation is not None:
        held_out = checked_features(validation[0], validation[1], "validation features")
        if held_out.shape[1] != x.shape[1]:
            raise ValueError(f"validation features must have {x.shape[1]} columns, got {held_out.shape[1]}")
        return result(search, samples, *search.choose(samples, HeldOut.of(held_out, validation[1], groups)))
    if search.num_settings == 1:
        return result(search, samples, None, ())
    training, examples = halves(samples, chosen.seed)
    held_out_half = HeldOut(x[examples], samples.labels[examples], groups.group_ids()[examples].astype(np.int64))
    return result(search, samples, *search.choose(training, held_out_half))


def checked_features(features: Tensor | ArrayLike, groups: GroupIndex, name: str) -> Features:
    """Return `features` as a contiguous float32 array `[N, D]`."""
    checks.instance(groups, f"groups of the {name}", GroupIndex)
    host = checks.on_host(features)
    array = np.ascontiguousarray(host.float().numpy() if isinstance(host, Tensor) else host, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] == 0 or len(array) != groups.num_examples:
        raise ValueError(
            f"{name} must be [{groups.num_examples}, D], one row for each example, got {list(array.shape)}"
        )
    for start in range(0, len(array), 65536):
        finite = np.isfinite(array[start : start + 65536]).all(axis=1)
        if not finite.all():
            raise ValueError(f"{name} must be finite, but row {start + int(np.argmin(finite))} is not")
    return array
