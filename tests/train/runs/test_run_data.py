"""Settings that do not fit the data, and the normalization of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_data import pack
from run_commands import train
from transformers import ResNetConfig, ResNetForImageClassification

from spurmix import PackedDataset
from spurmix.train import models
from spurmix.train.runs import files
from spurmix.train.runs.config import DEFAULT, RunConfig
from spurmix.train.runs.data import complete, read_split
from spurmix.train.runs.model import build_model


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(model="bert"), "model must be one of resnet50, small for images, got 'bert'"),
        (dict(model="small", weights="w.pth"), "weights: there is no file"),
        (dict(validation_split="dev"), "validation_split must be one of train, val, test, got 'dev'"),
        (dict(test_split="train"), "test_split: 'train' is the training split"),
        (dict(train_split="none"), "train_split must be one of train, val, test, got 'none'"),
        (dict(attribute="place"), "attribute must be one of colour, got 'place'"),
        (dict(policy="lisa", policy_options={"q": 1}), "policy_options: lisa accepts p, alpha, unknown, attributed_only, subsample, got 'q'"),
        (dict(policy="upweight"), "policy_options: upweight: "),
        (dict(policy_options={"lam": "gamma(2)"}), "lam must be beta(a, b), uniform(low, high), fixed(value) or twopoint(low, high, p), got 'gamma(2)'"),
        (dict(policy_options={"lam": "beta(-1, 2)"}), "lam: 'beta(-1, 2)': Beta: a must be"),
        (dict(model="small", crop=False, crop_size=8, flip=True), "with crop=False"),
        (dict(weights="nowhere.pth"), "there is no file"),
        (dict(model="small", min_group_size=50), "min_group_size is 50, but the largest group has only"),
        (dict(model="small", mix_at="features"), "mix_at requires texts"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_data(settings: dict[str, Any], text: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        train(images, tmp_path / "run", settings)
    assert text in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_normalization_is_stored_with_the_weights(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = models.resnet50(2).state_dict()
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    config = ResNetConfig(image_mean=mean, image_std=std, num_labels=2, downsample_in_bottleneck=False)
    model = ResNetForImageClassification(config)
    model.load_state_dict(state)
    files.write_weights(tmp_path / "w.safetensors", model, {}, RunConfig(model="resnet50"))
    assert models.resnet50(2, weights=tmp_path / "w.safetensors").config.image_mean == pytest.approx(mean)
    settings = dataclasses.replace(DEFAULT, model="resnet50", weights=str(tmp_path / "w.safetensors"))
    dataset = PackedDataset(images)
    data = read_split(settings, dataset, "test", build_model(settings, dataset))
    assert data.source.mean.tolist() == pytest.approx(mean) and data.source.std.tolist() == pytest.approx(std)


def test_hidden_folders_among_the_classes_are_reported(tmp_path: Path) -> None:
    dataset = PackedDataset(pack(tmp_path / "data", "images"))
    dataset.metadata = dataclasses.replace(dataset.metadata, class_names=("cat", ".ipynb_checkpoints"))
    with pytest.warns(UserWarning, match=r"are hidden or system folders: '\.ipynb_checkpoints'; pack the images again"):
        complete(DEFAULT, dataset)
