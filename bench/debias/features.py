"""Feature settings with a spurious attribute: Gaussian features, and images of digits behind a fixed random layer.

All data is made from installed packages. Digits are those of scikit-learn (1,797 of 8 x 8 pixels), or the 10,000 test
digits of MNIST if a folder with `mnist_t10k_images_idx3.gz` and `mnist_t10k_labels_idx1.gz` is given.

The training split is a biased bulk, whose attributes are unknown, and a few attributed examples of each group. The
validation split has as many attributed examples of each group. The test split has equally many of each group. The seed
changes everything except the random layer and the appearance of the attributes.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spurmix import GroupIndex
from spurmix.core.groups import UNKNOWN

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Known = int | Literal["all"]
"""Number of attributed examples of each group, or "all" if the attributes of the bulk are known too."""

BULK, WIDTH = 4000, 256
"""Number of Gaussian bulk examples, and number of features of images."""
TEST_EXAMPLES = 4000
"""Maximum number of test examples."""
MAX_ATTRIBUTED = 100
"""Number of attributed examples of each group if all attributes are known."""
MNIST_FILES = ("mnist_t10k_images_idx3.gz", "mnist_t10k_labels_idx1.gz")


@dataclass(frozen=True)
class Setting:
    """A kind of data.

    Attributes:
        kind: "gaussian", "color", "background" or "watermark".
        correlation: Share of the bulk whose attribute is the usual one of its class.
        classes: Number of classes, 2 or 10.
        attributes: Number of attributes.
    """

    kind: str
    correlation: float
    classes: int = 2
    attributes: int = 2

    @property
    def name(self) -> str:
        """Name, such as "color-2x2-95"."""
        return f"{self.kind}-{self.classes}x{self.attributes}-{100 * self.correlation:.0f}"


@dataclass(frozen=True)
class FeatureSplit:
    """Features and groups of a split.

    Attributes:
        features: float32 `[N, D]`.
        groups: Groups. The attribute of bulk examples is unknown.
    """

    features: Floats
    groups: GroupIndex


@dataclass(frozen=True)
class FeatureData:
    """The splits of a setting.

    Attributes:
        name: Name of the setting.
        train: Bulk and attributed examples.
        validation: Attributed examples that choose hyperparameters.
        test: Equally many examples of each group.
    """

    name: str
    train: FeatureSplit
    validation: FeatureSplit
    test: FeatureSplit


SETTINGS = {
    setting.name: setting
    for setting in (
        *(Setting(kind, share) for kind in ("gaussian", "color", "background", "watermark") for share in (0.9, 0.95, 0.99)),
        Setting("gaussian", 0.95, 2, 4), Setting("gaussian", 0.95, 10, 4), Setting("color", 0.95, 10, 2),
        Setting("background", 0.95, 10, 4), Setting("watermark", 0.95, 2, 4),
    )
}  # fmt: skip
"""The 17 settings by name."""


def make_features(setting: Setting, seed: int, *, known: Known = 100, digits: str | Path | None = None) -> FeatureData:
    """Make the splits of a setting.

    Args:
        setting: The setting.
        seed: Random seed, 0 or more.
        known: Number of attributed examples of each group in the training and in the validation split. Where a class has
            too few digits, there are fewer: at most half of its training digits are attributed.
        digits: Folder with the test digits of MNIST. Default: the digits of scikit-learn.

    Returns:
        The splits.
    """
    rng = np.random.default_rng([seed, *setting.name.encode()])
    count = MAX_ATTRIBUTED if known == "all" else known
    if setting.kind == "gaussian":
        return _assemble(setting, known, rng, _gaussian_counts(setting, count), _gaussian_features(setting, rng))
    images, labels = _digits(digits)
    labels = labels if setting.classes == 10 else labels // 5
    pools = _DigitPools(labels, setting, count, rng)
    return _assemble(setting, known, rng, pools.counts, _image_features(setting, images, pools, rng))


@dataclass(frozen=True)
class _SplitCounts:
    """Number of bulk examples of each class, and of examples of each group."""

    bulk: Integers
    attributed: int
    validation: int
    test: int


Draw = Callable[[str, Integers, Integers], Floats]
"""Makes the features of examples of a split, given their classes and attributes."""


def _assemble(
    setting: Setting, known: Known, rng: np.random.Generator, counts: _SplitCounts, draw: Draw
) -> FeatureData:
    usual, other = np.arange(setting.classes) % setting.attributes, setting.attributes - 1
    label = np.repeat(np.arange(setting.classes), counts.bulk)
    shift = rng.integers(1, other + 1, label.size)
    follows = rng.random(label.size) < setting.correlation
    attribute = (usual[label] + np.where(follows, 0, shift)) % setting.attributes
    few = _cells(setting, counts.attributed)
    labels, attributes = np.concatenate([label, few[0]]), np.concatenate([attribute, few[1]])
    shown = attributes.copy()
    if known != "all":
        shown[: label.size] = UNKNOWN
    train = FeatureSplit(draw("train", labels, attributes), _groups(setting, labels, shown))
    return FeatureData(
        setting.name,
        train,
        *(
            FeatureSplit(draw(name, *_cells(setting, count)), _groups(setting, *_cells(setting, count)))
            for name, count in (("validation", counts.validation), ("test", counts.test))
        ),
    )


def _cells(setting: Setting, count: int) -> tuple[Integers, Integers]:
    """Class and attribute of `count` examples of each group."""
    label, attribute = np.divmod(np.arange(setting.classes * setting.attributes), setting.attributes)
    return np.repeat(label, count), np.repeat(attribute, count)


def _groups(setting: Setting, labels: Integers, attributes: Integers) -> GroupIndex:
    names = [f"class {k}" for k in range(setting.classes)], [f"attribute {k}" for k in range(setting.attributes)]
    return GroupIndex(labels, attributes, class_names=names[0], attribute_names=names[1])


def _gaussian_counts(setting: Setting, count: int) -> _SplitCounts:
    test = TEST_EXAMPLES // (setting.classes * setting.attributes)
    return _SplitCounts(np.full(setting.classes, BULK // setting.classes), count, count, test)


def _gaussian_features(setting: Setting, rng: np.random.Generator) -> Draw:
    """Means of the class in some dimensions and, farther apart, of the attribute in others, then a rotation."""
    fixed = np.random.default_rng([1, setting.classes, setting.attributes])
    core, spurious = fixed.standard_normal((setting.classes, 16)), fixed.standard_normal((setting.attributes, 16))
    core, spurious = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (core, spurious))
    rotation = np.linalg.qr(fixed.standard_normal((64, 64)))[0]

    def draw(_: str, label: Integers, attribute: Integers) -> Floats:
        x = rng.standard_normal((label.size, 64))
        x[:, :16] += (1.5 if setting.classes == 2 else 3.0) * core[label]
        x[:, 16:32] += 5.0 * spurious[attribute]
        return (x @ rotation).astype(np.float32)

    return draw


def _digits(folder: str | Path | None) -> tuple[Floats, Integers]:
    """Digits `[N, side, side]` in [0, 1] and their classes."""
    if folder is None:
        from sklearn.datasets import load_digits

        found = load_digits()
        return (found.images / 16).astype(np.float32), found.target.astype(np.int64)
    raw = [gzip.decompress((Path(folder) / name).read_bytes()) for name in MNIST_FILES]
    images = np.frombuffer(raw[0], dtype=np.uint8, offset=16).reshape(-1, 28, 28)
    return (images / 255).astype(np.float32), np.frombuffer(raw[1], dtype=np.uint8, offset=8).astype(np.int64)


class _DigitPools:
    """Digits of each split and class. Each digit occurs once."""

    def __init__(self, labels: Integers, setting: Setting, count: int, rng: np.random.Generator) -> None:
        classes, attributes = setting.classes, setting.attributes
        members = [rng.permutation(np.flatnonzero(labels == y)) for y in range(classes)]
        least = min(part.size for part in members)
        test = least // 4 // attributes
        validation = min(count, least // 5 // attributes)
        starts = np.cumsum([0, test * attributes, validation * attributes])
        attributed = min(count, (least - int(starts[2])) // 2 // attributes)
        bulk = np.array([part.size for part in members]) - starts[2] - attributed * attributes
        self.counts = _SplitCounts(bulk, attributed, validation, test)
        self._members, self._starts, self._rng = members, starts, rng

    def take(self, split: str, label: Integers) -> Integers:
        """Digits for examples of a split, by their class."""
        at = {"test": 0, "validation": 1, "train": 2}[split]
        chosen = np.empty(label.size, dtype=np.int64)
        for y, part in enumerate(self._members):
            own = np.flatnonzero(label == y)
            chosen[own] = part[self._starts[at] : self._starts[at] + own.size]
        return chosen


def _image_features(setting: Setting, images: Floats, pools: _DigitPools, rng: np.random.Generator) -> Draw:
    """Features of painted digits: a fixed random layer with ReLU."""
    side = images.shape[1]
    fixed = np.random.default_rng([2, side])
    layer = (fixed.standard_normal((side * side * 3, WIDTH)) / side).astype(np.float32)
    offset = fixed.standard_normal(WIDTH).astype(np.float32) / 2
    paint = {"color": _color, "background": _background, "watermark": _watermark}[setting.kind]

    def draw(split: str, label: Integers, attribute: Integers) -> Floats:
        painted = paint(images[pools.take(split, label)], attribute, rng)
        painted += 0.1 * rng.standard_normal(painted.shape, dtype=np.float32)
        return np.maximum((painted.reshape(label.size, -1) - 0.3) @ layer + offset, 0)

    return draw


COLORS = np.array([[1.0, 0.3, 0.2], [0.2, 0.5, 1.0], [0.3, 0.9, 0.3], [0.9, 0.8, 0.2]], dtype=np.float32)
"""Colors of the attributes."""


def _color(digits: Floats, attribute: Integers, rng: np.random.Generator) -> Floats:
    """Color the digits."""
    shade = COLORS[attribute] * rng.uniform(0.7, 1.0, (attribute.size, 1)).astype(np.float32)
    return digits[..., None] * shade[:, None, None, :]


def _background(digits: Floats, attribute: Integers, rng: np.random.Generator) -> Floats:
    """Put the digits in front of a texture in the color of the attribute, shifted at random."""
    side = digits.shape[1]
    wave = np.sin(np.arange(2 * side) * (2 * np.pi / max(4, side // 3)))
    texture = 0.5 + 0.25 * (wave[:, None] + wave[None, :])
    shift = rng.integers(0, side, (attribute.size, 2))
    patches = np.stack([texture[i : i + side, j : j + side] for i, j in shift]).astype(np.float32)
    behind = 0.6 * patches[..., None] * COLORS[attribute][:, None, None, :]
    return behind * (1 - digits[..., None]) + digits[..., None]


def _watermark(digits: Floats, attribute: Integers, rng: np.random.Generator) -> Floats:
    """Draw a small bright square in the corner of the attribute."""
    side = digits.shape[1]
    width = max(2, side // 7)
    painted = np.repeat(digits[..., None], 3, axis=3)
    bright = rng.uniform(0.6, 1.0, (attribute.size, 1, 1, 1)).astype(np.float32)
    for a in range(int(attribute.max(initial=0)) + 1):
        rows = slice(0, width) if a < 2 else slice(side - width, side)
        columns = slice(0, width) if a % 2 == 0 else slice(side - width, side)
        painted[attribute == a, rows, columns] = bright[attribute == a]
    return painted
