"""ResNet50 and BERT-base as plain modules, so that results do not depend on the versions of other packages."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Bottleneck block of ResNet v1.5, with the stride in the 3x3 convolution."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        same = stride == 1 and inside == out
        self.short = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inside, h, w]` to `[B, 4 * width, h / stride, w / stride]`."""
        return torch.relu(self.body(x) + self.short(x))


class ResNet(nn.Sequential):
    """ResNet v1.5. The defaults are ResNet50.

    Args:
        blocks: Number of blocks of each stage.
        width: Width of the first stage.
        classes: Number of classes.
    """

    def __init__(self, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        ]  # fmt: skip
        inside = width
        for stage, count in enumerate(blocks):
            for k in range(count):
                layers.append(Bottleneck(inside, width << stage, 2 if k == 0 and stage > 0 else 1))
                inside = 4 * (width << stage)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


class Bert(nn.Module):
    """BERT encoder with a classifier on the first position. The defaults are BERT-base.

    Args:
        layers: Number of layers.
        width: Width of the embeddings.
        words: Size of the vocabulary.
        length: Maximum number of tokens.
        classes: Number of classes.
    """

    def __init__(
        self, layers: int = 12, width: int = 768, words: int = 30522, length: int = 128, classes: int = 2
    ) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, embedded: Tensor) -> Tensor:
        """Map word embeddings `[B, S, width]` to logits `[B, classes]`."""
        x = self.norm(embedded + self.positions.weight[: embedded.shape[1]])
        return self.head(self.encoder(x)[:, 0])
