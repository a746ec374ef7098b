"""Features of frozen encoders, and heads that are trained on them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_text_models import GROUPS, KINDS, PADDING, RNG, build, source, two_classes
from torch import Tensor, nn

from spurmix import MixedInputs, extract_features, models, policies, retrain_head
from spurmix.train.evaluate import predict
from spurmix.train.models import head_layer


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_input_of_the_last_layer(kind: str) -> None:
    model = build(kind)
    texts = source(pad_id=PADDING.get(kind, 0))
    features = extract_features(model, texts, batch_size=33)
    assert model.training
    assert features.shape == (160, 16)
    layer = head_layer(model)
    pickle.dumps(layer)  # fails if a hook is left
    torch.testing.assert_close(F.linear(features, layer.weight, layer.bias), predict(model, texts), atol=1e-5, rtol=0)


def test_features_of_images() -> None:
    images = RNG.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    model = models.small_resnet(2, width=4)
    assert extract_features(model, images).shape == (10, 16)


def test_head_is_retrained_on_mixed_features() -> None:
    model = two_classes("mean")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    features = extract_features(model, source())
    options: Any = dict(epochs=40, learning_rate=3e-2, batch_size=32)
    result = retrain_head(model, source(), GROUPS, policies.balance_attributes(), features=features, **options)
    assert np.mean(result.losses[-40:]) < np.mean(result.losses[:40])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"classifier.weight", "classifier.bias"}
    twin = two_classes("mean")
    retrain_head(MixedInputs(twin), source(), GROUPS, policies.balance_attributes(), **options)
    assert torch.equal(twin.classifier.weight, model.classifier.weight)
    with pytest.raises(ValueError, match=r"features must have shape \[N, 16\]"):
        retrain_head(model, source(), GROUPS, policies.erm(), features=features[:, :3])


def test_heads_on_other_inputs_than_features_are_rejected() -> None:
    with pytest.raises(ValueError, match="no head"):
        extract_features(nn.Identity(), np.zeros((4, 2), dtype=np.float32))

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(x[:, None].expand(-1, 3, -1))[:, 0]

    with pytest.raises(ValueError, match=r"must be features \[B, D\], got \[4, 3, 2\]"):
        extract_features(Tagger(), np.zeros((4, 2), dtype=np.float32))
