"""Groups of examples with unknown attributes: inferred from errors of a model, clusters of features, or pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.vq import ClusterError, kmeans2
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.array_types import Int64Array
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.names import INFERRED
from spurmix.data.sources.arrays import Source
from spurmix.train.evaluate import predict
from spurmix.train.head import extract_features
from spurmix.train.heads.attributes import attribute_logits
from spurmix.train.heads.fit import checked_features
from spurmix.train.heads.options import HeadOptions
from spurmix.train.heads.samples import HeadSamples

InferenceMethod: TypeAlias = Literal["errors", "clusters", "pseudo_labels"]
PSEUDO_LABEL_C = 1.0
"""C of the head of pseudo-labels. With a stronger penalty, few probabilities exceed `confidence`."""
RESTARTS = 10
"""Number of starting points of k-means. The result with the smallest distances is used."""


def find_errors(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    groups: GroupIndex,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    sharded: bool = False,
) -> NDArray[np.bool_]:
    """Find the examples that a model misclassifies.

    Args:
        model: Model that maps the inputs of the source to logits, see `evaluate`.
        source: Images, texts or features of N examples, as for `MixLoader`.
        groups: Groups of the examples. Only the labels are used.
        batch_size: Number of examples per batch.
        device: Device of the inputs. Default: the device of the model.
        sharded: If True, each process of torch.distributed reads its share of the examples. All get the same result.

    Returns:
        Mask `[N]`, True for misclassified examples.

    Raises:
        ValueError: If the lengths differ or the logits of an example are not finite.

    Example:
        >>> errors = find_errors(model, images, groups)
        >>> errors.mean()
    """
    checks.instance(groups, "groups", GroupIndex)
    logits = predict(model, source, batch_size=batch_size, device=device, sharded=sharded)
    if len(logits) != groups.num_examples:
        raise ValueError(f"source has {len(logits)} examples, the groups have {groups.num_examples}")
    finite = torch.isfinite(logits).all(dim=1)
    if not finite.all():
        raise ValueError(f"logits of example {int((~finite).nonzero()[0])} are not finite")
    errors: NDArray[np.bool_] = logits.argmax(dim=1).numpy() != groups.labels
    return errors


def infer_groups(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    groups: GroupIndex,
    method: InferenceMethod,
    *,
    features: Tensor | None = None,
    num_clusters: int = 2,
    confidence: float = 0.8,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> GroupIndex:
    """Infer groups of training examples with unknown attributes.

    `method` decides what replaces the spurious attribute:

    - "errors": whether the model misclassifies the example (1) or not (0). The model is trained for a few epochs by ERM,
      as in JTT. Errors are mostly examples that contradict the spurious correlation.
    - "clusters": cluster of the features among the examples of the class, by k-means. Cluster 0 is the largest of each
      class. The model is trained by ERM, as in GEORGE.
    - "pseudo_labels": known attributes are kept. Unknown ones are predicted from the features by a logistic regression
      that is fitted on the examples of known attribute, with equally many of each group. They remain unknown if the
      probability is less than `confidence`.

    The first two methods number the attribute within each class, so that attribute 1 of two classes need not have
    anything in common. Use them with methods that treat each group separately: `policies.group_balanced`,
    `policies.upweight`, `GroupDRO` and `retrain_head` with "dfr". Policies that compare attributes of several classes
    (`balance_attributes`, `lisa`, `selecmix`) require "pseudo_labels".

    Args:
        model: Model with a head, see `models.head_of`.
        source: Images, texts or features of N examples, as for `MixLoader`.
        groups: Labels of the examples, and attributes of some of them for "pseudo_labels".
        method: "errors", "clusters" or "pseudo_labels".
        features: Features `[N, D]`, the result of `extract_features(model, source)`. Default: they are computed. Not for
            "errors".
        num_clusters: Number of clusters of each class, 2 or more.
        confidence: Minimum probability of a pseudo-label, in [0, 1]. 0 labels all examples.
        seed: Random seed.
        batch_size: Number of examples per batch.
        device: Device of the inputs. Default: the device of the model.
        progress: Whether to show a progress bar. Default: only on a terminal.

    Returns:
        The groups of the same examples. The names of inferred attributes end with "(inferred)". In evaluations, an
        attribute of "pseudo_labels" is compared with the true attribute of the same name.

    Raises:
        TypeError: If an argument has the wrong type or belongs to another method.
        ValueError: If an argument is invalid, the model has no errors, features are not finite, a class has too few
            different features, or too few attributes are known.

    Example:
        >>> inferred = infer_groups(early_model, images, groups, "errors")
        >>> policy = policies.upweight({"misclassified": 20})
        >>> finetune(model, MixLoader(images, inferred, policy, 128, epochs=10))

    References:
        Liu et al., Just Train Twice, ICML 2021, arXiv 2107.09044 (errors). Sohoni et al., No Subclass Left Behind, NeurIPS
        2020, arXiv 2011.12945 (GEORGE: clusters). Nam et al., Spread Spurious Attribute, ICLR 2022, arXiv 2204.02070, for
        the idea of pseudo-labels.
    """
    checks.choice(method, "method", get_args(InferenceMethod))
    checks.instance(groups, "groups", GroupIndex)
    num_clusters = checks.integer(num_clusters, "num_clusters", 2)
    confidence = checks.number(confidence, "confidence", 0, 1)
    seed = checks.integer(seed, "seed", 0)
    if method == "errors":
        if features is not None:
            raise TypeError('features is not an argument of method "errors", which reads the predictions of the model')
        return error_groups(groups, find_errors(model, source, groups, batch_size=batch_size, device=device))
    if method == "pseudo_labels":
        known = _known(groups)
        if known.all():
            return groups
    if features is None:
        features = extract_features(model, source, batch_size=batch_size, device=device, progress=progress)
    values = checked_features(features, groups, "features")
    if method == "clusters":
        names = [f"cluster {k}" for k in range(num_clusters)]
        return _with_attributes(groups, _clusters(values, groups, num_clusters, seed), names)
    return _pseudo_labels(values, groups, known, confidence, seed, progress)


def error_groups(groups: GroupIndex, errors: NDArray[np.bool_]) -> GroupIndex:
    """Make groups of correctly and incorrectly classified examples of each class.

    Args:
        groups: Groups of the examples. Only the labels are used.
        errors: Mask `[N]` of the misclassified examples, the result of `find_errors`.

    Returns:
        The groups, with the attributes "correct (inferred)" and "misclassified (inferred)".

    Raises:
        ValueError: If no example is misclassified.
    """
    if not errors.any():
        raise ValueError("the model classifies all examples correctly; use a model of an earlier epoch")
    return _with_attributes(groups, errors.astype(np.int64), ("correct", "misclassified"))


def _with_attributes(groups: GroupIndex, attributes: Int64Array, names: Sequence[str]) -> GroupIndex:
    inferred = [f"{name}{INFERRED}" for name in names]
    return GroupIndex(groups.labels, attributes, class_names=groups.class_names, attribute_names=inferred)


def _clusters(values: NDArray[np.float32], groups: GroupIndex, count: int, seed: int) -> Int64Array:
    """Cluster of each example among those of its class, numbered by size."""
    result = np.zeros(groups.num_examples, dtype=np.int64)
    for label in np.unique(groups.labels):
        own = np.flatnonzero(groups.labels == label)
        best, cluster = np.inf, None
        for restart in range(RESTARTS if own.size >= count else 0):
            rng = np.random.default_rng([seed, int(label), restart])
            try:
                with np.errstate(invalid="ignore"):  # all features may be equal
                    centers, found = kmeans2(values[own], count, iter=100, minit="++", missing="raise", seed=rng)
            except ClusterError:  # a cluster without examples
                continue
            distance = float(((values[own] - centers[found]) ** 2).sum(dtype=np.float64))
            if distance < best:
                best, cluster = distance, found
        if cluster is None:
            name = repr(groups.class_names[label]) if groups.class_names else label
            raise ValueError(
                f"class {name} has {own.size} examples, which do not form {count} clusters of different features; use "
                "fewer clusters"
            )
        order = np.argsort(-np.bincount(cluster, minlength=count), kind="stable")
        result[own] = np.argsort(order)[cluster]
    return result


def _known(groups: GroupIndex) -> NDArray[np.bool_]:
    """Which examples have a known attribute."""
    attributes = groups.spurious_attributes
    if attributes is None:
        raise ValueError("pseudo_labels requires attributes of some examples; the attributes of the others are -1")
    known: NDArray[np.bool_] = attributes != UNKNOWN
    different = np.unique(attributes[known])
    if different.size < 2:
        raise ValueError(f"pseudo_labels requires examples of two known attributes or more, got {different.size}")
    return known


def _pseudo_labels(
    values: NDArray[np.float32],
    groups: GroupIndex,
    known: NDArray[np.bool_],
    confidence: float,
    seed: int,
    progress: bool | None,
) -> GroupIndex:
    """The groups with predicted attributes where the prediction is confident."""
    attributes = groups.spurious_attributes
    assert attributes is not None and groups.attributes is not None
    cells = GroupIndex(groups.labels, np.where(known, attributes, UNKNOWN))
    samples = HeadSamples(cells, np.arange(groups.num_examples), "pseudo_labels")
    different, logits = attribute_logits(
        values, samples, np.flatnonzero(~known), HeadOptions(seed=seed), progress, c=PSEUDO_LABEL_C
    )
    probability, choice = torch.softmax(logits.double(), dim=1).max(dim=1)
    predicted = np.where(probability.numpy() >= confidence, different[choice.numpy()], UNKNOWN)
    filled = groups.attributes.astype(np.int64)
    column = filled if filled.ndim == 1 else filled[:, groups.spurious]
    column[~known] = predicted
    names = groups.attribute_names or [f"a={k}" for k in range(groups.num_attributes)]
    return GroupIndex(
        groups.labels, filled, class_names=groups.class_names, spurious=groups.spurious,
        attribute_names=[f"{name}{INFERRED}" for name in names],
    )  # fmt: skip
