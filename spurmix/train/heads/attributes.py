"""Infers unknown attributes from features, by a logistic regression on the examples of known attribute."""

from __future__ import annotations

import numpy as np
import torch

from spurmix.core.array_types import Int64Array
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.resolved_policy import require_cells
from spurmix.train.heads.options import HeadOptions
from spurmix.train.heads.problem import HeadProblem
from spurmix.train.heads.rows import Features, HeadRows, Standardization
from spurmix.train.heads.samples import HeadSamples
from spurmix.train.heads.solver import fit_paths

INFERENCE_C = 0.01
"""C of the head that infers attributes. Values from 0.001 to 0.1 gave about the same accuracies."""
MOST_REPEATED = 2000
"""Maximum number of examples of a group for this head."""


def attribute_logits(
    features: Features,
    samples: HeadSamples,
    examples: Int64Array,
    options: HeadOptions,
    progress: bool | None,
    c: float = INFERENCE_C,
) -> tuple[Int64Array, torch.Tensor]:
    """Fit a head whose classes are the known attributes, on equally many examples of each group, and apply it.

    Args:
        features: float32 `[N, D]`.
        samples: Examples to fit on, with at least two known attributes.
        examples: Examples to apply the head to, `[M]`.
        options: The seed and the tolerance are used.
        progress: Whether to show progress bars.
        c: Inverse strength of the L2 penalty.

    Returns:
        The attributes `[A]`, ascending, and their logits, float32 `[M, A]`.
    """
    attribute = samples.groups.group_attributes[samples.groups.group_ids()]
    present = np.unique(attribute[samples.known]).astype(np.int64)
    chosen = samples.repeated(np.random.default_rng([options.seed, 2]), MOST_REPEATED)
    rows = HeadRows(chosen, np.searchsorted(present, attribute[chosen]).astype(np.int32))
    standardization = Standardization.of(features, chosen)
    problem = HeadProblem(features, standardization, present.size, (0.0,), (1.0 / c,), options.tolerance)
    (path,) = fit_paths(problem, [rows], name="attributes", progress=progress)
    weight, bias = standardization.unstandardized(path.weight[0])
    return present, torch.from_numpy(features[examples]) @ weight.T + bias


def infer_attributes(
    features: Features, samples: HeadSamples, options: HeadOptions, progress: bool | None
) -> HeadSamples:
    """Predict unknown attributes.

    Examples that would be in a group without attributed examples remain unknown.

    Args:
        features: float32 `[N, D]`.
        samples: The examples.
        options: The seed and the tolerance are used.
        progress: Whether to show progress bars.

    Returns:
        Samples of the same examples, whose groups are those of the label and the attribute.

    Raises:
        ValueError: If a group has several classes or attributes.
    """
    groups, known = samples.groups, samples.known
    require_cells(groups, samples.name)
    attribute = groups.group_attributes[groups.group_ids()].copy()
    unknown = np.setdiff1d(samples.chosen, known)
    if np.unique(attribute[known]).size > 1 and unknown.size:
        present, logits = attribute_logits(features, samples, unknown, options, progress)
        predicted = present[logits.argmax(dim=1).numpy()]
        exists = np.zeros((groups.num_classes, int(present[-1]) + 1), dtype=bool)
        exists[samples.labels[known], attribute[known]] = True
        attribute[unknown] = np.where(exists[samples.labels[unknown], predicted], predicted, UNKNOWN)
    return HeadSamples(GroupIndex(samples.labels, attribute), samples.chosen, samples.name)
