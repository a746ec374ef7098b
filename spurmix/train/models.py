"""Models, through transformers: ResNet50, a small ResNet of the same family, BERT. Nothing is ever downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError("models need the package 'transformers': pip install 'spurmix[train]'") from error
    return transformers


def _check_classes(num_classes: int) -> None:
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")


def resnet50(num_classes: int, *, channels: int = 3) -> nn.Module:
    """ResNet50 (v1.5), randomly initialised: `[B, channels, H, W]` float -> output with `.logits` `[B, num_classes]`."""
    _check_classes(num_classes)
    library = _transformers()
    config = library.ResNetConfig(num_channels=channels, num_labels=num_classes, downsample_in_bottleneck=False)
    return library.ResNetForImageClassification(config)


def small_resnet(num_classes: int, *, channels: int = 3, width: int = 16) -> nn.Module:
    """A small ResNet of the same family, for images of about 32 x 32 pixels: three stages of basic blocks.

    `[B, channels, H, W]` float -> output with `.logits` `[B, num_classes]`.
    """
    _check_classes(num_classes)
    library = _transformers()
    config = library.ResNetConfig(
        num_channels=channels,
        num_labels=num_classes,
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width],
        depths=[1, 1, 1],
        layer_type="basic",
    )
    return library.ResNetForImageClassification(config)


def bert(num_classes: int, *, pretrained: str | Path | None = None, **config: Any) -> nn.Module:
    """BERT with a classification head: from a local folder `pretrained`, or randomly initialised from `config`."""
    _check_classes(num_classes)
    library = _transformers()
    if pretrained is None:
        return library.BertForSequenceClassification(library.BertConfig(num_labels=num_classes, **config))
    if not Path(pretrained).is_dir():
        raise ValueError(f"pretrained must be a local folder with a model, {pretrained} is none")
    return library.BertForSequenceClassification.from_pretrained(
        pretrained, num_labels=num_classes, local_files_only=True, **config
    )


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, an object with `.logits`, or a tuple that begins with them."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TypeError(f"the model must return logits (a tensor, .logits or a tuple), got {type(output).__name__}")


HEAD_NAMES = ("classifier", "fc", "head", "score")


def head_of(model: nn.Module) -> nn.Module:
    """The classification head: the submodule named classifier, fc, head or score, else the last `nn.Linear`.

    Raises:
        ValueError: where a model has neither.
    """
    for name in HEAD_NAMES:
        head = getattr(model, name, None)
        if isinstance(head, nn.Module) and any(True for _ in head.parameters()):
            return head
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise ValueError(f'freeze="backbone": the model has no submodule {", ".join(HEAD_NAMES)} and no nn.Linear')
    return linear[-1]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights, which decay, and biases and norms, which do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]


def parameter_count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer, else the CPU."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
