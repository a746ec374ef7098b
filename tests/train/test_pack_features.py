"""`pack_features`: results for images and texts, shards, interrupted jobs and invalid input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from spurmix import FeatureSource, ImageSource, policies, retrain_head
from spurmix.cli.features import features, load_encoder
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.table import from_table
from spurmix.data.pack.merge import merge, shards_of
from spurmix.data.pack.texts import pack_texts
from spurmix.train import models, pack_features
from spurmix.train.head import extract_features

COUNT = 50


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    rows = ["path,label,place,part"]
    for n in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / f"{n}.png")
        rows.append(f"{n}.png,{n % 2},{n // 2 % 2},{'train' if n < 30 else 'test'}")
    (root / "list.csv").write_text("\n".join(rows))
    pack_images(from_table(root / "list.csv", attributes=["place"], split="part"), root / "packed", size=8)
    return PackedDataset(root / "packed")


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return models.small_resnet(2, width=4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_of_images(dtype: str, images: PackedDataset, network: Any, tmp_path: Path) -> None:
    network.config.image_mean, network.config.image_std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    report = pack_features.pack_features(network, images, tmp_path / "f", batch_size=7, dtype=dtype, name="small")
    data = PackedDataset(report.path)
    source = ImageSource(images.array, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = extract_features(network, source, batch_size=7).numpy()
    assert data.kind == "features" and data.array.dtype == dtype and data.array.shape == (COUNT, 16)
    np.testing.assert_allclose(data.array, expected.astype(dtype), rtol=1e-5, atol=1e-6)
    assert data.splits == images.splits and data.metadata.sources == images.metadata.sources
    assert data.groups("place").table() == images.groups("place").table() and data.verify() == []
    assert data.provenance["model"]["name"] == "small" and sorted(p.name for p in report.path.iterdir()) == [
        "dataset.json",
        "features.npy",
        "metadata.parquet",
    ]
    train = data.split("train")
    assert isinstance(train.source(), FeatureSource)
    read = torch.from_numpy(train.array.astype(np.float32))
    before = network.classifier[1].weight.clone()
    source = images.split("train").source()
    retrain_head(network, source, train.groups(), policies.group_balanced(), features=read, steps=3)
    assert not torch.equal(before, network.classifier[1].weight)


def test_shards_and_interrupted_job(
    images: PackedDataset, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_features, "BATCHES", 2)
    whole = pack_features.pack_features(network, images, tmp_path / "whole", batch_size=4)
    for k in range(3):
        pack_features.pack_features(network, images, tmp_path / "f", batch_size=4, shard=(k, 3))
    merged = PackedDataset(merge(shards_of(tmp_path / "f"), tmp_path / "f").path)
    np.testing.assert_allclose(merged.array, PackedDataset(whole.path).array, rtol=1e-5, atol=1e-6)
    assert merged.splits == images.splits and merged.verify() == []

    calls = 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return extract_features(*arguments, **options)

    monkeypatch.setattr(pack_features, "extract_features", dying)
    with pytest.raises(KeyboardInterrupt):
        pack_features.pack_features(network, images, tmp_path / "g", batch_size=4)
    report = pack_features.pack_features(network, images, tmp_path / "g", batch_size=4)
    assert report.resumed == 24 and calls == 4 + 4
    assert np.array_equal(PackedDataset(report.path).array, PackedDataset(whole.path).array)

    calls = 0
    with pytest.raises(KeyboardInterrupt):
        pack_features.pack_features(network, images, tmp_path / "h", batch_size=4)
    with torch.no_grad():
        network.classifier[1].weight.add_(1)  # another model, so packing starts again
    assert pack_features.pack_features(network, images, tmp_path / "h", batch_size=4).resumed == 0


def test_features_of_texts(tmp_path: Path) -> None:
    rows = [f"{'good ' * (n % 9)}day {n},{n % 2}" for n in range(20)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows))
    model = models.minilm(2)
    pack_texts(from_table(tmp_path / "t.csv", text="text"), tmp_path / "t", models.minilm_folder(), max_length=16)
    texts = PackedDataset(tmp_path / "t")
    data = PackedDataset(pack_features.pack_features(model, texts, tmp_path / "f", batch_size=8).path)
    np.testing.assert_allclose(data.array, extract_features(model, texts.source()).numpy(), rtol=1e-3, atol=1e-5)
    assert data.array.shape == (20, 384)


def test_bad_input(images: PackedDataset, network: Any, tmp_path: Path) -> None:
    for options, message in (
        (dict(batch_size=0), "batch_size must be 1 or more"),
        (dict(dtype="int8"), "dtype must be one of float32, float16"),
        (dict(shard=(2, 2)), "shard must be"),
        (dict(shard=(0, 99)), "shard 0 of 99 has no examples"),
    ):
        with pytest.raises(ValueError, match=message):
            pack_features.pack_features(network, images, tmp_path / "f", **options)  # type: ignore[arg-type]
    pack_features.pack_features(network, images, tmp_path / "done")
    with pytest.raises(ValueError, match="holds features"):
        pack_features.pack_features(network, PackedDataset(tmp_path / "done"), tmp_path / "f")
    with pytest.raises(ValueError, match="already exists"):
        pack_features.pack_features(network, images, tmp_path / "done")
    with torch.no_grad():
        network.resnet.embedder.embedder.normalization.weight.mul_(1e9)
        for stage in network.resnet.encoder.stages[1:]:
            for name, weights in stage.named_parameters():
                if name.endswith("normalization.weight"):
                    weights.mul_(1e7)
    with pytest.raises(ValueError, match=r"features of example 0 \(0\.png\) are too large for float16"):
        pack_features.pack_features(network, images, tmp_path / "f", dtype="float16")
    with torch.no_grad():
        network.resnet.embedder.embedder.normalization.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"features of example 0 \(0\.png\) are not finite"):
        pack_features.pack_features(network, images, tmp_path / "f2")
    assert not (tmp_path / "f").exists() and not (tmp_path / "f2").exists()


def check_merged(images: PackedDataset, network: Any, target: Path) -> None:
    data = PackedDataset(merge(shards_of(target), target).path)
    expected = extract_features(network, images.source()).numpy()
    np.testing.assert_allclose(data.array, expected, rtol=1e-5, atol=1e-6)
    assert data.splits == images.splits and data.provenance["parts"] == 2


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Any, Path]:
    network = models.small_resnet(2)
    save_file(network.state_dict(), str(tmp_path / "w.safetensors"))
    return network, tmp_path / "w.safetensors"


def test_each_process_packs_its_shard(
    images: PackedDataset, weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        features(images.path, tmp_path / "f", "small", weights[1])
        assert f"after all 2 shards are packed, run: spurmix merge --target {tmp_path / 'f'}" in capsys.readouterr().out
    check_merged(images, weights[0], tmp_path / "f")
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE must be integers"):
        features(images.path, tmp_path / "g", "small", weights[1])


@pytest.mark.slow
def test_command_under_torchrun(images: PackedDataset, weights: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "spurmix"]
    arguments = ("features", images.path, tmp_path / "f", "--model", "small", "--weights", weights[1])
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_merged(images, weights[0], tmp_path / "f")


def test_invalid_models_and_weights(images: PackedDataset, tmp_path: Path) -> None:
    for name, weights, message in (
        ("vgg", None, "--model must be one of resnet50, small for images .* got 'vgg'"),
        ("bert", tmp_path, "--model must be one of resnet50, small for images .* got 'bert'"),
        (None, tmp_path, "--model .* got None"),
        ("resnet50", None, "--weights is required for resnet50"),
        ("small", tmp_path / "nothing.safetensors", "weights: there is no file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_encoder(name, weights if weights is None else str(weights), images)


def test_files_of_features_have_no_path(images: PackedDataset, network: Any, tmp_path: Path) -> None:
    report = pack_features.pack_features(network, images, tmp_path / "f", name=str(tmp_path / "run"))
    made = PackedDataset(report.path).provenance
    assert made["model"]["name"] == "run" and made["root"] == "packed"
    assert str(tmp_path) not in (report.path / "dataset.json").read_text()
