"""Small datasets in published layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.waterbirds import from_waterbirds


def packed_waterbirds(root: Path) -> Path:
    """Write images and `metadata.csv` as in Waterbirds, and pack them: bars on backgrounds of two colors."""
    rng = np.random.default_rng(0)
    rows = ["img_id,img_filename,y,split,place,place_filename"]
    for n in range(260):
        split = 0 if n < 140 else 1 if n < 200 else 2
        y = int(rng.integers(2))
        place = y if rng.random() < (0.9 if split == 0 else 0.5) else 1 - y
        image = rng.integers(0, 60, (16, 16, 3))
        image[:, :, 2] += 150 * place
        image[slice(5, 8) if y else slice(2, 14), slice(2, 14) if y else slice(5, 8), :2] += 120
        name = f"{n % 5:03d}.Bird/{n:04d}.png"
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(root / name)
        rows.append(f"{n},{name},{y},{split},{place},x")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    pack_images(from_waterbirds(root), root / "packed", size=16)
    return root / "packed"
