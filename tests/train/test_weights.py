"""Pre-trained weights: round trips through every layout, and weights that do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from spurmix import models
from spurmix.train.weights import WeightsError, load_weights, read_weights

DEPTHS = (2, 1, 3, 1)


def small(classes: int) -> nn.Module:
    """A narrow and shallow ResNet50."""
    config = ResNetConfig(
        num_labels=classes,
        downsample_in_bottleneck=False,
        embedding_size=8,
        hidden_sizes=[16, 32, 64, 64],
        depths=DEPTHS,
    )
    return ResNetForImageClassification(config)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(3)
    model = small(7)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    return model.eval()


def torchvision_names(model: nn.Module, depths: tuple[int, ...] = DEPTHS) -> dict[str, Tensor]:
    """State dict with the names of torchvision and timm, derived from the structure of a ResNet."""
    state = model.state_dict()
    named: dict[str, Tensor] = {}

    def both(theirs: tuple[str, str], ours: str) -> None:
        for name, value in state.items():
            for there, kind in zip(theirs, ("convolution", "normalization"), strict=True):
                if name.startswith(f"{ours}.{kind}."):
                    named[f"{there}.{name.rsplit('.', 1)[1]}"] = value

    both(("conv1", "bn1"), "resnet.embedder.embedder")
    for stage, depth in enumerate(depths):
        for block in range(depth):
            ours, theirs = f"resnet.encoder.stages.{stage}.layers.{block}", f"layer{stage + 1}.{block}"
            for k in range(3):
                both((f"{theirs}.conv{k + 1}", f"{theirs}.bn{k + 1}"), f"{ours}.layer.{k}")
            if block == 0:
                both((f"{theirs}.downsample.0", f"{theirs}.downsample.1"), f"{ours}.shortcut")
    named["fc.weight"], named["fc.bias"] = state["classifier.1.weight"], state["classifier.1.bias"]
    assert len(named) == len(state)
    return named


def same(model: nn.Module, other: nn.Module) -> None:
    images = torch.rand(2, 3, 40, 40)
    assert torch.equal(model(images).logits, other.eval()(images).logits)


@pytest.mark.parametrize("layout", ["torchvision", "timm", "parallel", "old", "robustness", "transformers"])
def test_round_trips(layout: str, trained: nn.Module, tmp_path: Path) -> None:
    state: dict[str, Any] = torchvision_names(trained)
    path = tmp_path / "weights.pth"
    if layout == "torchvision":
        torch.save(state, path)
    elif layout == "timm":
        path = tmp_path / "model.safetensors"
        save_file({n: v.contiguous() for n, v in state.items()}, str(path))
    elif layout == "parallel":
        torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 3}, path)
    elif layout == "old":  # without the counter of batches
        torch.save({n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}, path)
    elif layout == "robustness":
        wrapped = {f"module.{k}.{n}": v for n, v in state.items() for k in ("model", "attacker.model")}
        for what, numbers in (("mean", (0.1, 0.2, 0.3)), ("std", (0.4, 0.5, 0.6))):
            wrapped[f"module.normalizer.new_{what}"] = torch.tensor(numbers)[:, None, None]
            wrapped[f"module.attacker.normalize.new_{what}"] = torch.tensor(numbers)[:, None, None]
        torch.save({"model": wrapped, "epoch": 90}, path)
    else:
        path = tmp_path / "folder"
        trained.save_pretrained(path)
    model, other = small(7), small(3)
    read = load_weights(model, path)
    same(trained, model)
    assert read.mean == (pytest.approx((0.1, 0.2, 0.3)) if layout == "robustness" else None)
    assert read.layout == {"timm": "torchvision", "parallel": "torchvision", "old": "torchvision"}.get(layout, layout)
    head = other.classifier[1].weight.clone()
    load_weights(other, path)  # does not change the head
    assert torch.equal(other.classifier[1].weight, head)
    name = "resnet.encoder.stages.2.layers.1.layer.1.convolution.weight"
    assert torch.equal(other.state_dict()[name], trained.state_dict()[name])


def test_resnet50_loads_torchvision_names(tmp_path: Path) -> None:
    fresh = models.resnet50(5).eval()
    wrapped = {f"module.model.{n}": v for n, v in torchvision_names(fresh, (3, 4, 6, 3)).items()}
    wrapped["module.normalizer.new_mean"] = wrapped["module.normalizer.new_std"] = torch.full((3, 1, 1), 0.5)
    torch.save({"model": wrapped}, tmp_path / "w.pt")
    model = models.resnet50(5, weights=tmp_path / "w.pt")
    same(fresh, model)
    assert model.config.image_mean == (0.5, 0.5, 0.5)


def test_parameters_that_do_not_fit_are_listed(trained: nn.Module, tmp_path: Path) -> None:
    state, path = torchvision_names(trained), tmp_path / "w.pth"
    for change, message in (
        (lambda s: s | {"aux.weight": torch.zeros(1)}, "has no known layout .*unknown names: aux.weight"),
        (lambda s: s | {"layer9.0.conv1.weight": torch.zeros(1)}, "unknown: resnet.encoder.stages.8"),
        (lambda s: {n: v for n, v in s.items() if not n.startswith("layer3.2")}, "missing: .*stages.2.layers.2.* more"),
        (lambda s: s | {"conv1.weight": torch.zeros(8, 1, 7, 7)}, re.escape("of another shape: resnet.embedder.embedder.convolution.weight ([8, 1, 7, 7], expected [8, 3, 7, 7])")),
    ):  # fmt: skip
        torch.save(change(state), path)
        with pytest.raises(WeightsError, match=message):
            load_weights(small(7), path)


class Plain:
    pass


def test_files_that_cannot_be_read_safely(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": {"conv1.weight": torch.zeros(1)}, "args": Plain()}, path)
    with pytest.raises(WeightsError, match="are not unpickled"):
        read_weights(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"(cannot read .*w.pth|w.pth has other objects)"):
        read_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="must be a state dict of tensors"):
        read_weights(path)
    (tmp_path / "w.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(WeightsError, match="cannot read"):
        read_weights(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="there is no file"):
        read_weights(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="has neither"):
        read_weights(tmp_path)
