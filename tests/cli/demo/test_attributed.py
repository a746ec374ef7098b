"""Examples of known attribute: the validation split, and the inferred shares of the other examples."""

from __future__ import annotations

import numpy as np

from spurmix.cli.demo.attributed import ATTRIBUTED_PER_GROUP, VALIDATION_PER_GROUP, DemoData, attribute_shares, divide
from spurmix.cli.demo.split import DemoSplit
from spurmix.core.groups import GroupIndex
from spurmix.data.sources.arrays import ImageSource


def split(count: int, seed: int = 0) -> DemoSplit[np.ndarray]:
    """Images whose pixels are the number of the origin, four images per origin."""
    rng = np.random.default_rng(seed)
    origin = np.repeat(np.arange(count // 4), 4)
    label = origin % 2
    attribute = np.where(rng.random(count) < 0.8, label, 1 - label)
    images = np.repeat(origin[:, None], 12, axis=1).reshape(count, 2, 2, 3).astype(np.uint8)
    return DemoSplit(images, label, attribute, origin)


def division(count: int = 2000, seed: int = 3) -> DemoData:
    return divide(split(count), split(40, 1), seed, ImageSource, ("a", "b"), ("c", "d"))


def test_no_origin_is_in_training_and_validation() -> None:
    train = split(1000)
    data = divide(train, split(40, 1), 3, ImageSource, ("a", "b"), ("c", "d"))
    pixels = [set(s.images[:, 0, 0, 0].tolist()) for s in (data.train, data.validation)]
    assert not pixels[0] & pixels[1]
    assert data.validation_groups.sizes.tolist() == [
        min(VALIDATION_PER_GROUP, n // 4) for n in GroupIndex(train.label, train.attribute).sizes
    ]


def test_few_attributes_are_known() -> None:
    data = division()
    known = data.groups.group_attributes >= 0
    assert data.groups.sizes[known].max() <= ATTRIBUTED_PER_GROUP
    assert data.groups.sizes[~known].sum() > 0
    attributes = np.asarray(data.groups.attributes)
    assert np.array_equal(attributes[attributes >= 0], np.asarray(data.train_groups.attributes)[attributes >= 0])


def test_the_division_depends_only_on_the_seed() -> None:
    first, again, other = division(), division(), division(seed=4)
    assert np.array_equal(np.asarray(first.groups.attributes), np.asarray(again.groups.attributes))
    assert not np.array_equal(first.validation.images, other.validation.images)


def test_shares_are_those_of_unknown_examples() -> None:
    label, attribute = np.repeat([0, 1], 10), np.array([0] * 9 + [1] + [1] * 6 + [0] * 4)
    known = np.where(np.arange(20) % 10 < 5, attribute, -1)
    shares = attribute_shares(GroupIndex(label, known), GroupIndex(label, attribute))
    assert np.allclose(shares, [[0.8, 0.2], [0.8, 0.2]])
    assert np.allclose(
        attribute_shares(GroupIndex(label, attribute), GroupIndex(label, attribute)), [[0.9, 0.1], [0.4, 0.6]]
    )
