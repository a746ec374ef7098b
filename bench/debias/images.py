"""Image settings with a spurious attribute: the digits of scikit-learn in front of photographs, textures or noise.

All images are made from data that scikit-learn includes. The attribute is the photograph ("photos"), the color of the digit
("color"), the color of a texture behind it ("background"), or the corner of a small square ("watermark"). Training,
validation and test images show different digits. The training split is a biased bulk, whose attributes are unknown, and a
few attributed images of each group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bench.debias.features import COLORS, Known, Setting
from spurmix import GroupIndex, ImageSource, finetune, models, policies
from spurmix.cli.demo import digits as demo
from spurmix.core.groups import UNKNOWN
from spurmix.train.runs.config import RunConfig, resolve
from spurmix.train.runs.data import SplitData
from spurmix.train.runs.processes import Processes
from spurmix.train.runs.run import make_loader
from spurmix.train.sweep.task import SweepTask

Images = NDArray[np.uint8]
Integers = NDArray[np.int64]

SETTINGS = {
    setting.name: setting
    for setting in (
        *(Setting("photos", share) for share in (0.9, 0.95, 0.99)),
        *(Setting(kind, 0.95) for kind in ("color", "background", "watermark")),
        Setting("photos", 0.95, 2, 4), Setting("photos", 0.95, 10, 2), Setting("color", 0.95, 10, 4),
    )
}  # fmt: skip
"""Settings by name."""


@dataclass(frozen=True)
class ImageScale:
    """Amount of data and training.

    Attributes:
        bulk: Number of bulk images.
        epochs: Epochs of training with each method. Pre-training takes a third of them.
        test: Number of test images.
        validation: Maximum number of validation images per group. There are at most as many as attributed ones.
    """

    bulk: int = 4400
    epochs: float = 12.0
    test: int = 2000
    validation: int = 25


def image_config(scale: ImageScale) -> RunConfig:
    """Settings of the training, those of the demo."""
    settings: dict[str, object] = {
        "model": "small", "batch_size": 128, "epochs": scale.epochs, "learning_rate": 5e-3, "crop": True,
        "crop_area": 0.6, "device": "cpu", "prefetch": 0,
    }  # fmt: skip
    return resolve(settings)


def make_image_task(setting: Setting, seed: int, known: Known, scale: ImageScale) -> SweepTask:
    """Make the data of a seed, and pre-train a small ResNet on it by ERM.

    Args:
        setting: The setting.
        seed: Random seed of data, weights and pre-training.
        known: Number of attributed training images of each group, or "all" if the attributes of the bulk are known too.
        scale: Amount of data and training.

    Returns:
        The task.
    """
    rng = np.random.default_rng([seed, *setting.name.encode()])
    train, validation, test = make_images(setting, rng, known, scale)
    config, processes = image_config(scale), Processes("cpu")
    torch.manual_seed(seed)
    model = models.small_resnet(setting.classes)
    shorter = RunConfig(**{**vars(config), "epochs": scale.epochs / 3, "seed": seed})
    finetune(
        model,
        make_loader(shorter, train, policies.erm(), processes),
        options=shorter.finetune_options(),
        progress=False,
    )
    return SweepTask(config, model, train, validation, test, processes)


def make_images(
    setting: Setting, rng: np.random.Generator, known: Known, scale: ImageScale
) -> tuple[SplitData, SplitData, SplitData]:
    """Make the training, validation and test split.

    Args:
        setting: The setting.
        rng: Source of randomness.
        known: Number of attributed training images of each group, or "all".
        scale: Amount of data.

    Returns:
        The three splits.
    """
    from sklearn.datasets import load_digits

    pictures, target = load_digits(return_X_y=True)
    classes = target.astype(np.int64) if setting.classes == 10 else (target >= 5).astype(np.int64)
    order = rng.permutation(len(target))
    pools = dict(zip(("test", "validation", "train"), np.split(order, [500, 700]), strict=True))
    draw = _Painter(setting, pictures.reshape(-1, 8, 8) / 16.0, rng)

    bulk = np.resize(pools["train"], scale.bulk)
    usual = classes[bulk] % setting.attributes
    shift = rng.integers(1, setting.attributes, bulk.size)
    attribute = (usual + np.where(rng.random(bulk.size) < setting.correlation, 0, shift)) % setting.attributes
    count = 100 if known == "all" else known
    digits, few = _balanced(setting, classes, pools["train"], count, rng)
    shown = attribute if known == "all" else np.full(bulk.size, UNKNOWN)
    train = np.concatenate([bulk, digits]), np.concatenate([attribute, few]), np.concatenate([shown, few])
    per_group = setting.classes * setting.attributes
    splits = [SplitData("train", ImageSource(draw(train[0], train[1])), _groups(setting, classes[train[0]], train[2]))]
    for name, size in (("validation", min(count, scale.validation)), ("test", scale.test // per_group)):
        chosen, attributes = _balanced(setting, classes, pools[name], size, rng)
        splits.append(
            SplitData(name, ImageSource(draw(chosen, attributes)), _groups(setting, classes[chosen], attributes))
        )
    return splits[0], splits[1], splits[2]


def _balanced(
    setting: Setting, classes: Integers, pool: Integers, count: int, rng: np.random.Generator
) -> tuple[Integers, Integers]:
    """Draw `count` digits of each group from a pool, and their attributes. Digits may repeat."""
    label, attribute = np.divmod(np.arange(setting.classes * setting.attributes), setting.attributes)
    chosen = [rng.choice(pool[classes[pool] == y], count) for y in label]
    return np.concatenate(chosen), np.repeat(attribute, count)


def _groups(setting: Setting, labels: Integers, attributes: Integers) -> GroupIndex:
    names = [f"class {k}" for k in range(setting.classes)], [f"attribute {k}" for k in range(setting.attributes)]
    return GroupIndex(labels, attributes, class_names=names[0], attribute_names=names[1])


class _Painter:
    """Paints digits of 8 x 8 pixels, enlarged to 24 x 24, on backgrounds of 32 x 32 pixels."""

    def __init__(self, setting: Setting, pictures: NDArray[np.float64], rng: np.random.Generator) -> None:
        self._kind, self._pictures, self._rng = setting.kind, pictures, rng
        self._photographs: list[Images] = []
        if setting.kind == "photos":
            from sklearn.datasets import load_sample_images

            found = [np.asarray(photograph) for photograph in load_sample_images().images]
            self._photographs = [*found, *(photograph[..., ::-1] for photograph in found)]

    def __call__(self, digits: Integers, attributes: Integers) -> Images:
        """Paint digits with attributes. Returns uint8 `[N, 32, 32, 3]`."""
        out = np.empty((digits.size, demo.SIZE, demo.SIZE, 3), dtype=np.uint8)
        for i, (digit, a) in enumerate(zip(digits, attributes, strict=True)):
            ink = np.zeros((demo.SIZE, demo.SIZE, 1))
            y, x = self._rng.integers(2, 7, 2)
            ink[y : y + 24, x : x + 24, 0] = demo.enlarge(self._pictures[digit])
            color = self._rng.uniform(200, 255) * (COLORS[a] if self._kind == "color" else np.ones(3))
            image = self._background(int(a)) * (1 - ink) + color * ink
            if self._kind == "watermark":
                top, left = (0 if a < 2 else demo.SIZE - 5), (0 if a % 2 == 0 else demo.SIZE - 5)
                image[top : top + 5, left : left + 5] = self._rng.uniform(150, 255)
            out[i] = np.clip(image, 0, 255)
        return out

    def _background(self, attribute: int) -> NDArray[np.float64]:
        rng, size = self._rng, demo.SIZE
        if self._kind == "photos":
            photograph, step = self._photographs[attribute], 3
            top, left = (rng.integers(0, photograph.shape[k] - size * step) for k in (0, 1))
            return demo.BRIGHTNESS * photograph[top : top + size * step : step, left : left + size * step : step]
        if self._kind == "background":
            wave = np.sin(np.arange(size) * 0.8 + rng.uniform(0, 2 * np.pi)), np.sin(np.arange(size) * 0.8)
            texture = 90 + 40 * (wave[0][:, None] + wave[1][None, :])
            return texture[..., None] * COLORS[attribute]
        return rng.uniform(0, 80, (size, size, 1)) * np.ones(3)
