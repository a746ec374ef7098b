"""120 feature vectors and a network that learns them, for tests of training."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from spurmix import GroupIndex

RNG = np.random.default_rng(8)
LABELS, ATTRIBUTES = RNG.integers(0, 2, 120), RNG.integers(0, 2, 120)
FEATURES = (RNG.standard_normal((120, 6)) + 2 * LABELS[:, None]).astype(np.float32)
GROUPS = GroupIndex(LABELS, ATTRIBUTES)


def network(dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))
