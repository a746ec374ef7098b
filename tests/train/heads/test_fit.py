"""Heads by DFR, DISPEL and logistic regression: draws, choice of hyperparameters, and invalid input."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from spurmix import GroupIndex, HeadOptions, fit_head
from spurmix.train.heads.attributes import infer_attributes
from spurmix.train.heads.rows import Standardization
from spurmix.train.heads.samples import HeadSamples

UNKNOWN = -1


def biased(
    count: int, correlation: float, seed: int, classes: int = 2, known: int | None = None
) -> tuple[Any, GroupIndex]:
    """Features with a weak core signal and a strong spurious one, and groups in which `known` attributes are known."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    attribute = np.where(rng.random(count) < correlation, label, rng.integers(0, classes, count))
    x = rng.standard_normal((count, 12)).astype(np.float32)
    x[np.arange(count), label] += 1.8
    x[np.arange(count), 5 + attribute] += 4.0
    x = x @ np.random.default_rng(99).standard_normal((12, 12)).astype(np.float32) * 5 + 3
    if known is not None:
        attribute[rng.permutation(count)[known:]] = UNKNOWN
    return x, GroupIndex(label, attribute)


def worst_group(head: Any, x: Any, groups: GroupIndex) -> float:
    correct = head.logits(torch.from_numpy(x)).argmax(dim=1).numpy() == groups.labels
    return min(correct[groups.examples(g)].mean() for g in range(groups.num_groups) if groups.sizes[g])


TEST = biased(4000, 0.0, 50)


def test_dfr_equals_scikit_learn_on_the_same_subsets() -> None:
    x, groups = biased(1500, 0.9, 1)
    options = HeadOptions(C=[0.1], fits=4, seed=3, tolerance=1e-9)
    head = fit_head(x, groups, "dfr", options=options)
    samples = HeadSamples(groups, np.arange(1500), "dfr")
    standardization = Standardization.of(x, np.arange(1500))
    scaled = standardization.apply(x)
    weights = []
    for k in range(4):
        subset = samples.balanced(np.random.default_rng([3, 0, k]))
        assert np.ptp(np.bincount(groups.group_ids()[subset])) == 0 and np.unique(subset).size == subset.size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn 1.8 deprecates `penalty`
            model = LogisticRegression(penalty="l1", C=0.1, solver="liblinear", tol=1e-8, max_iter=1000)
            model.fit(scaled[subset], groups.labels[subset])
        weights.append(np.append(model.coef_[0], model.intercept_[0]))
    expected = np.mean(weights, axis=0)
    found = (head.weight[1] - head.weight[0]).numpy() / standardization.inverse_scale
    np.testing.assert_allclose(found, expected[:-1], atol=1e-3)
    logits = scaled @ expected[:-1] + expected[-1]
    difference = head.logits(torch.from_numpy(x)).diff(dim=1)[:, 0].numpy()
    np.testing.assert_allclose(difference, logits, atol=1e-2)
    assert np.mean((difference > 0) == (logits > 0)) >= 0.999


@pytest.mark.parametrize("classes", [2, 3])
def test_dfr_and_dispel_repair_the_worst_group(classes: int) -> None:
    x, groups = biased(3000, 0.95 if classes == 2 else 0.8, 2, classes, known=600 * (classes - 1))
    validation, test = biased(1500, 0.5, 3, classes), biased(3000, 0.0, 4, classes)
    erm = fit_head(x, groups, "logistic", validation=validation, options=HeadOptions(C=[0.1]))
    before = worst_group(erm, *test)
    for method in ("dfr", "dispel"):
        options = HeadOptions(C=[1.0, 0.1, 0.01], fits=5, search_fits=2, s=[0.5, 1.0], alpha=[1.0])
        head = fit_head(x, groups, method, validation=validation, options=options)  # type: ignore[arg-type]
        assert worst_group(head, *test) > before + 0.1
        assert head.best == max(head.trials, key=lambda t: (t.worst_group, t.average, -t.settings["C"]))
        assert len(head.trials) == (3 if method == "dfr" else 6)
        assert str(head).startswith(f"{method}: head of 12 features and {classes} classes\nchosen C=")
        again = fit_head(x, groups, method, validation=validation, options=options)  # type: ignore[arg-type]
        assert torch.equal(again.weight, head.weight) and torch.equal(again.bias, head.bias)


def test_inferred_attributes_enlarge_the_subsets() -> None:
    x, groups = biased(4000, 0.9, 9, known=300)
    validation, test = biased(600, 0.5, 10), biased(4000, 0.0, 11)
    dfr, head = (fit_head(x, groups, method, validation=validation) for method in ("dfr", "inferred"))  # type: ignore[arg-type]
    assert worst_group(head, *test) > worst_group(dfr, *test) + 0.01
    assert [tuple(t.settings) for t in head.trials] == [("C", "infer")] * 14
    assert head.best is not None and head.best.settings["infer"] == 1
    again = fit_head(x, groups, "inferred", validation=validation)
    assert torch.equal(again.weight, head.weight) and again.trials == head.trials
    known = biased(400, 0.9, 12)
    both = HeadOptions(C=[0.1, 1.0], penalty="l2")
    assert [t.settings for t in fit_head(*known, "inferred", options=both).trials] == [
        {"C": c, "infer": 0.0} for c in (0.1, 1.0)
    ]
    options = HeadOptions(C=[0.1], penalty="l2", infer=[True])
    expected = fit_head(*known, "dfr", options=HeadOptions(C=[0.1], penalty="l2"))
    torch.testing.assert_close(fit_head(*known, "inferred", options=options).weight, expected.weight)


def test_attributes_are_inferred_from_features() -> None:
    x, groups = biased(2000, 0.9, 13)
    true = np.array(groups.attributes)
    shown = np.where((np.arange(2000) < 300) & ~((groups.labels == 0) & (true == 1)), true, UNKNOWN)
    hidden = GroupIndex(groups.labels, shown)
    samples = HeadSamples(hidden, np.arange(2000), "inferred")
    found = infer_attributes(x, samples, HeadOptions(), False)
    assert found.groups.attributes is not None
    inferred = np.array(found.groups.attributes)
    assert (inferred[shown >= 0] == shown[shown >= 0]).all() and np.isin(found.known, samples.chosen).all()
    # No example is put into group (0, 1), which has no attributed example.
    absent = (groups.labels == 0) & (true == 1)
    assert (inferred[groups.labels == 0] != 1).all() and np.mean(inferred[absent] == UNKNOWN) > 0.9
    assert np.mean(inferred[~absent] == true[~absent]) > 0.95
    part = infer_attributes(x, HeadSamples(hidden, np.arange(250, 2000), "inferred"), HeadOptions(), False)
    assert part.known.min() >= 250 and part.groups.group_attributes[part.groups.group_ids()[0]] == shown[0]
    custom = GroupIndex(groups.labels, shown, groups=np.zeros(2000, dtype=np.int64))
    with pytest.raises(ValueError, match="inferred requires groups of a single class and attribute"):
        infer_attributes(x, HeadSamples(custom, np.arange(2000), "inferred"), HeadOptions(), False)


def test_hyperparameters_are_chosen_on_half_of_the_attributed_examples() -> None:
    x, groups = biased(1200, 0.8, 5, known=500)
    options = HeadOptions(C=[0.5, 0.01], fits=3)
    head = fit_head(x, groups, "dfr", options=options)
    assert [trial.settings for trial in head.trials] == [{"C": 0.01}, {"C": 0.5}]
    assert head.best is not None
    single = HeadOptions(C=[c for c in (0.01, 0.5) if c <= head.best.settings["C"]][-1:], fits=3)
    np.testing.assert_allclose(fit_head(x, groups, "dfr", options=single).weight, head.weight, atol=2e-3)


def test_dispel_mixes_as_described() -> None:
    _, groups = biased(2000, 0.9, 6, known=400)
    samples = HeadSamples(groups, np.arange(2000), "dispel")
    rows = samples.dispel(np.random.default_rng(0), 0.3, 0.6)
    assert rows.partner is not None and rows.share is not None
    label = groups.labels
    assert np.ptp(np.bincount(label[rows.index])) == 0
    assert (rows.label == label[rows.index]).all() and (label[rows.partner] == rows.label).all()
    mixed = rows.share < 1
    assert np.unique(rows.share[mixed]).tolist() == [np.float32(0.7)] and abs(mixed.mean() - 0.6) < 0.05
    assert (rows.partner[~mixed] == rows.index[~mixed]).all()
    attribute = groups.group_attributes[groups.group_ids()[rows.partner[mixed]]]
    for y in (0, 1):
        shares = np.bincount(attribute[rows.label[mixed] == y], minlength=2)
        assert abs(shares[0] / shares.sum() - 0.5) < 0.06


def test_a_missing_group_is_replaced_by_its_attribute_in_other_classes() -> None:
    label, attribute = np.repeat([0, 0, 1], 20), np.repeat([0, 1, 1], 20)
    groups = GroupIndex(label, attribute)
    samples = HeadSamples(groups, np.arange(60), "dispel")
    rows = samples.dispel(np.random.default_rng(0), 1.0, 1.0)
    assert rows.partner is not None
    ones = rows.partner[rows.label == 1]
    assert set(label[ones].tolist()) == {0, 1} and set(attribute[ones][label[ones] == 0].tolist()) == {0}


def test_a_head_is_copied_into_a_layer() -> None:
    x, groups = biased(300, 0.5, 7)
    head = fit_head(x, groups, "dfr", options=HeadOptions(C=[0.1], fits=2))
    layer, single = nn.Linear(12, 2), nn.Linear(12, 1)
    head.copy_to(layer)
    head.copy_to(single)
    inputs = torch.from_numpy(x)
    torch.testing.assert_close(layer(inputs), head.logits(inputs))
    torch.testing.assert_close(single(inputs)[:, 0], head.logits(inputs).diff(dim=1)[:, 0], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"weights \[2, 12\], got \[3, 12\]"):
        head.copy_to(nn.Linear(12, 3))
    with pytest.raises(ValueError, match="without a bias"):
        head.copy_to(nn.Linear(12, 2, bias=False))


def test_invalid_input_is_rejected() -> None:
    x, groups = biased(200, 0.5, 8)
    one = HeadOptions(C=[0.1], fits=1)
    for options, message in (
        (dict(C=[0.0]), "C must be"), (dict(C=[]), "C must have one value"), (dict(s=[1.5]), "s must be"),
        (dict(alpha=[-0.1]), "alpha must be"), (dict(fits=0), "fits must be"), (dict(penalty="l3"), "penalty must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            HeadOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method must be one of"):
        fit_head(x, groups, "drf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"features must be \[200, D\]"):
        fit_head(x[:-1], groups)
    broken = x.copy()
    broken[17, 3] = np.nan
    with pytest.raises(ValueError, match="must be finite, but row 17 is not"):
        fit_head(broken, groups, options=one)
    with pytest.raises(ValueError, match="every feature is constant"):
        fit_head(np.ones_like(x), groups, options=one)
    many = GroupIndex(groups.labels, groups.attributes, class_names=[str(k) for k in range(300)])
    with pytest.raises(ValueError, match="one example of each class or more, got 200 of 300 classes"):
        fit_head(x, many, options=one)
    unknown = GroupIndex(groups.labels, np.full(200, UNKNOWN))
    with pytest.raises(ValueError, match="no example has a known attribute"):
        fit_head(x, unknown, options=one)
    partly = GroupIndex(groups.labels, np.where(groups.labels == 1, UNKNOWN, 0))
    with pytest.raises(ValueError, match="class 1 has no example whose attribute is known"):
        fit_head(x, partly, "dispel", options=one)
    with pytest.raises(ValueError, match="two classes or more"):
        fit_head(x, GroupIndex(np.zeros(200, dtype=np.int64), np.arange(200) % 2), options=one)
    lacks = GroupIndex(groups.labels[:50], np.zeros(50, dtype=np.int64))
    with pytest.raises(ValueError, match="validation has no example of group"):
        fit_head(x, groups, validation=(x[:50], lacks), options=one)
    with pytest.raises(ValueError, match="must have 12 columns, got 5"):
        fit_head(x, groups, validation=(x[:, :5], groups), options=one)
    rare = GroupIndex([0] * 10 + [1] * 10, [0] * 9 + [1] + [0] * 5 + [1] * 5)
    with pytest.raises(ValueError, match="has 1 attributed example, and choosing"):
        fit_head(x[:20], rare)
