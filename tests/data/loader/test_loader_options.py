"""Invalid options of MixLoader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_loader import FEATURES, IMAGES, LABELS, loader

from spurmix import FeatureSource, ImageSource
from spurmix.ops import functional as F


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (dict(batch=0), ValueError, "batch_size must be 1 or more"),
        (dict(batch=24.0), TypeError, "batch_size must be an integer"),
        (
            dict(batch=25, world_size=2),
            ValueError,
            "batch_size must be divisible by world_size, got batch_size=25 and world_size=2",
        ),
        (dict(rank=2, world_size=2), ValueError, "rank must be in"),
        (dict(rank=-1), ValueError, "rank must be 0"),
        (dict(world_size=0), ValueError, "world_size must be 1"),
        (dict(steps=0), ValueError, "steps must be 1"),
        (dict(epochs=1), ValueError, "must not both be given"),
        (dict(steps=None, epochs=-1), ValueError, "epochs must be a positive"),
        (dict(seed=-1), ValueError, "seed must be 0"),
        (dict(prefetch=-1), ValueError, "prefetch must be 0"),
        (dict(dtype=torch.int32), TypeError, "dtype must be"),
        (dict(augment="flip"), TypeError, "augment must be"),
        (dict(source=IMAGES[:5]), ValueError, "source has 5 examples, the groups have 90"),
        (dict(source=IMAGES.astype(np.float32)), ValueError, "features must have shape"),
        (dict(source=IMAGES.tolist()), TypeError, "source must be a tensor"),
        (dict(source=LABELS), TypeError, "source must be uint8 images"),
        (dict(source=FEATURES, augment=F.Augment()), ValueError, "augment is only for images"),
        (dict(policy="erm"), TypeError, "policy must be a MixPolicy"),
    ],
)
def test_invalid_options(options: dict, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        loader(**options)
    assert text in str(caught.value)


def test_invalid_sources() -> None:
    for call, text in [
        (lambda: ImageSource(IMAGES[:0]), "empty"),
        (lambda: ImageSource(IMAGES, mean=(0.5, 0.5)), "mean must have one value for each of the 3 channels, got 2"),
        (lambda: FeatureSource(FEATURES[:, :0]), "at least one example"),
        (lambda: loader().set_step(7), "step must be in"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
