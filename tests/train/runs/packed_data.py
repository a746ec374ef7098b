"""Small packed datasets with separable classes. The attribute correlates with the class in the training split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spurmix.data.dataset.format import Metadata, write_description, write_metadata

SPLITS = {"train": (240, 0.9), "val": (80, 0.5), "test": (120, 0.5)}
"""Number of examples of each split, and the fraction whose attribute equals the class."""


def pack(folder: Path, kind: str, seed: int = 0) -> Path:
    """A dataset of "images" (bars over a colour, 16 x 16) or "features" (noisy, 6 columns)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    label = np.concatenate([rng.integers(0, 2, count) for count, _ in SPLITS.values()])
    follows = np.concatenate([rng.random(count) < share for count, share in SPLITS.values()])
    attribute = np.where(follows, label, 1 - label)
    if kind == "images":
        images = rng.integers(0, 160, (label.size, 16, 16, 3))
        images[:, :, :, 0] += (60 * attribute)[:, None, None]
        images[label == 1, 5:8, 2:14] += 35
        images[label == 0, 2:14, 5:8] += 35
        np.save(folder / "images.npy", images.astype(np.uint8))
    else:
        features = rng.standard_normal((label.size, 6))
        features[:, 0] += 2.0 * label
        features[:, 1] += 3.0 * attribute
        np.save(folder / "features.npy", features.astype(np.float32))
    splits = [name for name, (count, _) in SPLITS.items() for _ in range(count)]
    metadata = Metadata(
        label, splits, [f"{n}.png" for n in range(label.size)], {"colour": attribute}, ("upright", "level"),
        {"colour": ("dark", "red")},
    )  # fmt: skip
    write_metadata(folder, metadata)
    write_description(folder, kind, metadata, {})
    return folder
