"""Inferred groups: errors of a model, clusters of features, pseudo-labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from spurmix import GroupIndex, MixLoader, evaluate, find_errors, finetune, infer_groups, policies, retrain_head

RNG = np.random.default_rng(5)
LABELS = RNG.integers(0, 2, 400)
ATTRIBUTES = np.where(RNG.random(400) < 0.9, LABELS, 1 - LABELS)
FEATURES = RNG.standard_normal((400, 5)).astype(np.float32)
FEATURES[:, 0] += 1.5 * LABELS
FEATURES[:, 1] += 6 * ATTRIBUTES
NAMES: dict[str, Any] = dict(class_names=["landbird", "waterbird"], attribute_names=["land", "water"])
TRUE = GroupIndex(LABELS, ATTRIBUTES, **NAMES)
KNOWN = np.concatenate([TRUE.examples(g)[:8] for g in range(4)])
PARTLY = GroupIndex(LABELS, np.where(np.isin(np.arange(400), KNOWN), ATTRIBUTES, -1), **NAMES)
UNATTRIBUTED = GroupIndex(LABELS, class_names=["landbird", "waterbird"])


def head() -> nn.Linear:
    """A head that predicts the class by the attribute."""
    layer = nn.Linear(5, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[1, 1] = 1
        layer.bias.copy_(torch.tensor([3.0, 0.0]))
    return layer


def test_errors_are_the_examples_that_the_model_misclassifies() -> None:
    expected = (FEATURES[:, 1] > 3) != LABELS
    assert np.array_equal(find_errors(head(), FEATURES, UNATTRIBUTED), expected)
    inferred = infer_groups(head(), FEATURES, UNATTRIBUTED, "errors")
    assert np.array_equal(inferred.attributes, expected) and np.array_equal(inferred.labels, LABELS)
    assert inferred.attribute_names == ("correct (inferred)", "misclassified (inferred)")
    assert inferred.group_name(1) == "landbird, misclassified (inferred)"
    assert (inferred.attributes == (ATTRIBUTES != LABELS)).mean() > 0.98


def test_upweighted_errors_are_drawn_by_their_factor() -> None:
    inferred = infer_groups(head(), FEATURES, UNATTRIBUTED, "errors")
    wrong = int(inferred.attributes.sum())
    for factors in ({"misclassified": 20}, {"misclassified (inferred)": 20}, {(0, 1): 20, (1, 1): 20}):
        audit = policies.upweight(factors).audit(inferred)
        share = sum(row.share for row in audit.groups[1::2])
        assert share == pytest.approx(20 * wrong / (20 * wrong + 400 - wrong), rel=1e-3)
    with pytest.raises(ValueError, match="there is no attribute 'mistaken'; the attributes are correct, misclassified"):
        policies.upweight({"mistaken": 20}).audit(inferred)
    with pytest.raises(ValueError, match="the groups have no attribute names"):
        policies.upweight({"misclassified": 20}).audit(UNATTRIBUTED)


@pytest.mark.parametrize("count", [2, 3])
def test_clusters_are_those_of_scikit_learn(count: int) -> None:
    inferred = infer_groups(head(), FEATURES, UNATTRIBUTED, "clusters", num_clusters=count)
    assert inferred.attribute_names == tuple(f"cluster {k} (inferred)" for k in range(count))
    for label in (0, 1):
        own = np.flatnonzero(label == LABELS)
        peer = KMeans(count, n_init=20, random_state=1).fit(FEATURES[own])
        found = inferred.attributes[own]
        means = np.array([FEATURES[own][found == k].mean(axis=0) for k in range(count)])
        inertia = ((FEATURES[own] - means[found]) ** 2).sum()
        assert inertia == pytest.approx(peer.inertia_, rel=1e-3 if count == 2 else 0.02)
        sizes = np.bincount(found)
        assert (np.diff(sizes) <= 0).all()
    if count == 2:
        minority = ATTRIBUTES != LABELS
        assert (inferred.attributes == minority).mean() > 0.98
    again = infer_groups(head(), FEATURES, UNATTRIBUTED, "clusters", num_clusters=count)
    assert again.fingerprint() == inferred.fingerprint()


def test_pseudo_labels_find_the_attribute_and_keep_the_known_ones() -> None:
    inferred = infer_groups(head(), FEATURES, PARTLY, "pseudo_labels", confidence=0.9)
    assert inferred.attribute_names == ("land (inferred)", "water (inferred)")
    assert np.array_equal(inferred.attributes[KNOWN], ATTRIBUTES[KNOWN])
    labelled = inferred.attributes >= 0
    assert labelled.mean() > 0.5
    assert (inferred.attributes == ATTRIBUTES)[labelled].mean() > 0.98
    everything = infer_groups(head(), FEATURES, PARTLY, "pseudo_labels", confidence=0)
    assert (everything.attributes >= 0).all()
    some = infer_groups(head(), FEATURES, PARTLY, "pseudo_labels", confidence=0.999).attributes >= 0
    assert KNOWN.size <= some.sum() < labelled.sum()
    assert infer_groups(head(), FEATURES, TRUE, "pseudo_labels") is TRUE


def test_pseudo_labels_of_one_of_several_columns() -> None:
    other = RNG.integers(0, 3, 400)
    groups = GroupIndex(LABELS, np.stack([other, PARTLY.attributes], axis=1), spurious=1)
    inferred = infer_groups(head(), FEATURES, groups, "pseudo_labels", confidence=0)
    assert np.array_equal(inferred.attributes[:, 0], other) and inferred.spurious == 1
    assert inferred.attribute_names == ("a=0 (inferred)", "a=1 (inferred)")
    assert (inferred.attributes[:, 1] == ATTRIBUTES).mean() > 0.95
    assert np.array_equal(groups.attributes[:, 1], PARTLY.attributes)  # the argument is unchanged


def test_inferred_groups_train_a_fair_head_and_are_compared_with_the_true_ones() -> None:
    before = evaluate(head(), FEATURES, TRUE).worst_group
    for method, groups in (("errors", UNATTRIBUTED), ("clusters", UNATTRIBUTED), ("pseudo_labels", PARTLY)):
        inferred = infer_groups(head(), FEATURES, groups, method)  # type: ignore[arg-type]
        layer = head()
        if method == "pseudo_labels":
            retrain_head(layer, FEATURES, inferred, method="dfr", validation=(FEATURES, TRUE))
            joined = evaluate(layer, FEATURES, TRUE, train_groups=inferred)
            assert joined.adjusted_average == pytest.approx(joined.average, abs=0.05)
        else:
            loader = MixLoader(FEATURES, inferred, policies.group_balanced(), 64, steps=100)
            finetune(layer, loader, learning_rate=0.1)
        assert before < 0.1 and evaluate(layer, FEATURES, TRUE).worst_group > 0.5


def test_bad_arguments() -> None:
    constant, bad = torch.zeros(400, 5), torch.zeros(400, 5)
    bad[7, 2] = torch.nan
    perfect = GroupIndex((FEATURES[:, 1] > 3).astype(int))
    one = GroupIndex(LABELS, np.where(np.arange(400) < 30, 0, -1))
    cases: list[tuple[Any, str, dict[str, Any], str]] = [
        (UNATTRIBUTED, "error", {}, "method must be one of errors, clusters, pseudo_labels"),
        (perfect, "errors", {}, "classifies all examples correctly; use a model of an earlier epoch"),
        (UNATTRIBUTED, "clusters", {"features": constant}, "class 'landbird' has .* do not form 2 clusters"),
        (UNATTRIBUTED, "clusters", {"features": bad}, "features must be finite, but row 7 is not"),
        (
            UNATTRIBUTED,
            "clusters",
            {"features": constant[:9]},
            r"features must be \[400, D\], one row for each example, got \[9, 5\]",
        ),
        (UNATTRIBUTED, "clusters", {"num_clusters": 1}, "num_clusters must be"),
        (UNATTRIBUTED, "pseudo_labels", {}, "requires attributes of some examples"),
        (one, "pseudo_labels", {}, "two known attributes or more, got 1"),
        (PARTLY, "pseudo_labels", {"confidence": 1.5}, r"confidence must be in \[0, 1\]"),
        (GroupIndex([0, 1]), "errors", {}, "source has 400 examples, the groups have 2"),
    ]
    for groups, method, options, text in cases:
        with pytest.raises(ValueError, match=text):
            infer_groups(head(), FEATURES, groups, method, **options)
    with pytest.raises(TypeError, match='features is not an argument of method "errors"'):
        infer_groups(head(), FEATURES, UNATTRIBUTED, "errors", features=constant)
    broken = head()
    broken.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits of example 0 are not finite"):
        find_errors(broken, FEATURES, UNATTRIBUTED)
