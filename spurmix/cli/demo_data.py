"""The demo's data: handwritten digits over crops of photographs, background correlated with the class in training.

Built from what scikit-learn ships: 1,797 digits of 8 x 8 pixels and two photographs. Class: digit below 5 or not.
Attribute: which photograph the background was cut from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 32
CORRELATION = 0.95
CLASS_NAMES = ("digit 0-4", "digit 5-9")
ATTRIBUTE_NAMES = ("temple", "flower")
TRAIN_COPIES = 4
TEST_PER_GROUP = 250
DIM = 0.7  # brightness of backgrounds: darker ones make the digit easier to see
HELD_OUT = 500  # digits that only the test set shows


@dataclass(frozen=True)
class Split:
    """images uint8 `[N, 32, 32, 3]`, label and attribute int64 `[N]`."""

    images: NDArray[np.uint8]
    label: NDArray[np.int64]
    attribute: NDArray[np.int64]


def load(seed: int) -> tuple[Split, Split]:
    """Training set, 95% of each class on its own background, and a test set balanced over the four groups."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ModuleNotFoundError as error:
        raise ImportError("the demo needs the package 'scikit-learn': pip install 'spurmix[demo]'") from error
    rng = np.random.default_rng([seed, 20230522])
    digits: Any = load_digits()
    photographs = [np.asarray(p) for p in load_sample_images().images]
    order = rng.permutation(len(digits.target))
    test, train = order[:HELD_OUT], np.repeat(order[HELD_OUT:], TRAIN_COPIES)

    label = (digits.target[train] >= 5).astype(np.int64)
    attribute = np.where(rng.random(label.size) < CORRELATION, label, 1 - label)
    training = Split(_render(digits.images[train], attribute, photographs, rng), label, attribute)

    groups = [(y, a) for y in (0, 1) for a in (0, 1)]
    by_class = [test[(digits.target[test] >= 5) == y] for y in (0, 1)]
    chosen = np.concatenate([rng.choice(by_class[y], TEST_PER_GROUP) for y, _ in groups])
    label = np.repeat([y for y, _ in groups], TEST_PER_GROUP)
    attribute = np.repeat([a for _, a in groups], TEST_PER_GROUP)
    return training, Split(_render(digits.images[chosen], attribute, photographs, rng), label, attribute)


def _render(
    digits: NDArray[Any], attribute: NDArray[Any], photographs: list[NDArray[np.uint8]], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Each 8 x 8 digit, enlarged to 24 x 24, drawn near the middle of a random crop of its photograph."""
    out = np.empty((len(digits), SIZE, SIZE, 3), dtype=np.uint8)
    for i, (digit, a) in enumerate(zip(digits, attribute, strict=True)):
        photograph = photographs[a]
        step = 3  # every third pixel, so that a crop shows something of the scene
        top = rng.integers(0, photograph.shape[0] - SIZE * step)
        left = rng.integers(0, photograph.shape[1] - SIZE * step)
        scene = DIM * photograph[top : top + SIZE * step : step, left : left + SIZE * step : step].astype(np.float32)
        ink = np.zeros((SIZE, SIZE, 1), dtype=np.float32)
        y, x = rng.integers(2, 7, 2)
        ink[y : y + 24, x : x + 24, 0] = _enlarged(digit / 16.0)
        colour = rng.uniform(200, 255)
        out[i] = np.clip(scene * (1 - ink) + colour * ink, 0, 255)
    return out


def _enlarged(digit: NDArray[Any]) -> NDArray[Any]:
    """8 x 8 to 24 x 24, bilinear."""
    p = np.clip((np.arange(24) + 0.5) / 3 - 0.5, 0, 7)
    low = np.minimum(p.astype(int), 6)
    f = p - low
    rows = digit[low] * (1 - f)[:, None] + digit[low + 1] * f[:, None]
    return rows[:, low] * (1 - f) + rows[:, low + 1] * f
