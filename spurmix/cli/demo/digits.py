"""Images of the demo: handwritten digits on crops of photographs. In training, background and class are correlated.

The images are made from data that scikit-learn includes: 1,797 digits of 8 x 8 pixels and two photographs. The class is
whether the digit is below 5. The attribute is the photograph of the background.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spurmix.cli.demo.split import DemoSplit

SIZE = 32
CORRELATION = 0.95
"""Fraction of training images whose background is the one of their class."""
CLASS_NAMES = ("digit 0-4", "digit 5-9")
ATTRIBUTE_NAMES = ("temple", "flower")
TRAIN_COPIES = 4
"""Number of training images per digit."""
TEST_PER_GROUP = 250
BRIGHTNESS = 0.7
"""Brightness of backgrounds. The digit is brighter."""
TEST_DIGITS = 500
"""Number of digits that occur only in the test set."""


def load(seed: int) -> tuple[DemoSplit[NDArray[np.uint8]], DemoSplit[NDArray[np.uint8]]]:
    """Make the images.

    Args:
        seed: Random seed.

    Returns:
        The training set, in which 95% of each class have the background of the class, and the test set, in which all four
        groups have the same size.

    Raises:
        ImportError: If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ModuleNotFoundError as error:
        raise ImportError("the demo needs the package 'scikit-learn': pip install 'spurmix[demo]'") from error
    rng = np.random.default_rng([seed, 20230522])
    digits = load_digits()
    photographs = [np.asarray(p) for p in load_sample_images().images]
    order = rng.permutation(len(digits.target))
    test, train = order[:TEST_DIGITS], np.repeat(order[TEST_DIGITS:], TRAIN_COPIES)

    label = (digits.target[train] >= 5).astype(np.int64)
    attribute = np.where(rng.random(label.size) < CORRELATION, label, 1 - label)
    training = DemoSplit(_draw_images(digits.images[train], attribute, photographs, rng), label, attribute, train)

    groups = [(y, a) for y in (0, 1) for a in (0, 1)]
    by_class = [test[(digits.target[test] >= 5) == y] for y in (0, 1)]
    chosen = np.concatenate([rng.choice(by_class[y], TEST_PER_GROUP) for y, _ in groups])
    label = np.repeat([y for y, _ in groups], TEST_PER_GROUP)
    attribute = np.repeat([a for _, a in groups], TEST_PER_GROUP)
    return training, DemoSplit(
        _draw_images(digits.images[chosen], attribute, photographs, rng), label, attribute, chosen
    )


def _draw_images(
    digits: NDArray[np.float64],
    attribute: NDArray[np.int64],
    photographs: list[NDArray[np.uint8]],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Draw each 8 x 8 digit, enlarged to 24 x 24, near the center of a random crop of its photograph."""
    out = np.empty((len(digits), SIZE, SIZE, 3), dtype=np.uint8)
    for i, (digit, a) in enumerate(zip(digits, attribute, strict=True)):
        photograph = photographs[a]
        step = 3  # every third pixel, so that a crop covers a recognizable part of the scene
        top = rng.integers(0, photograph.shape[0] - SIZE * step)
        left = rng.integers(0, photograph.shape[1] - SIZE * step)
        crop = photograph[top : top + SIZE * step : step, left : left + SIZE * step : step]
        ink = np.zeros((SIZE, SIZE, 1), dtype=np.float32)
        y, x = rng.integers(2, 7, 2)
        ink[y : y + 24, x : x + 24, 0] = enlarge(digit / 16.0)
        color = rng.uniform(200, 255)
        out[i] = np.clip(BRIGHTNESS * crop.astype(np.float32) * (1 - ink) + color * ink, 0, 255)
    return out


def enlarge(digit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Resize from 8 x 8 to 24 x 24, bilinear."""
    p = np.clip((np.arange(24) + 0.5) / 3 - 0.5, 0, 7)
    low = np.minimum(p.astype(int), 6)
    f = p - low
    rows = digit[low] * (1 - f)[:, None] + digit[low + 1] * f[:, None]
    enlarged: NDArray[np.float64] = rows[:, low] * (1 - f) + rows[:, low + 1] * f
    return enlarged
