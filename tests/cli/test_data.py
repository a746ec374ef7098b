"""The commands on packed datasets, as a user calls them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from spurmix.cli import app
from spurmix.cli.data import every_policy
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.layouts.civilcomments import FILE, IDENTITIES


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rows = ["file,animal,place,part"]
    for n in range(40):
        Image.fromarray(np.full((12, 12, 3), 6 * n, dtype=np.uint8)).save(root / f"{n}.png")
        animal, place = ("cat", "dog")[n % 2], ("in", "out")[(n % 2) ^ (n % 5 == 0)]
        rows.append(f"{n}.png,{animal},{place},{'train' if n < 30 else 'test'}")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root / "list.csv"


datasets: Any = importlib.import_module("datasets")
OPTIONS = ["--layout", "table", "--path-column", "file", "--label", "animal", "--attribute", "place", "--split", "part", "--size", 8]  # fmt: skip


def test_pack_inspect_audit_verify(table: Path, tmp_path: Path, command: Any) -> None:
    target = tmp_path / "packed"
    pack = [sys.executable, "-m", "spurmix", "pack", *map(str, (table, target, *OPTIONS))]
    done = subprocess.run(pack, capture_output=True, text=True)
    assert done.returncode == 0 and "40 examples" in done.stdout and done.stderr == "", done.stderr
    shown = command("inspect", target, "--sheet", tmp_path / "sheet.png")
    assert shown.returncode == 0, shown.stderr
    for text in ("train 30, test 10", "cat", "out", "correlation in the data: 0.", "balance_attributes", "mixpro"):
        assert text in shown.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 96, 4 * (96 + 18))
    told = command("audit", target, "--json")
    found = json.loads(told.stdout)
    assert found["residual"] < 1e-6 < found["raw"]
    assert "0.6000 in the data, 0.6000 after mixi" in command("audit", target, "--policy", "erm").stdout
    assert "every byte is as it was written" in command("verify", target).stdout
    data = bytearray((target / "images.npy").read_bytes())
    data[-1] ^= 255
    (target / "images.npy").write_bytes(data)
    bad = command("verify", target)
    assert bad.returncode == 2 and "images.npy: bytes" in bad.stdout and "is damaged in 1 place;" in bad.stderr


def test_shards_and_merge(table: Path, tmp_path: Path, command: Any) -> None:
    for number in range(2):
        assert command("pack", table, tmp_path / "p", *OPTIONS, "--shard", f"{number}/2").returncode == 0
    done = command("merge", tmp_path / "p.shard-0-of-2", tmp_path / "p.shard-1-of-2", "--target", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert PackedDataset(tmp_path / "whole").splits == {"train": 30, "test": 10}


def packed(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """What `spurmix pack` prints, in this process."""
    app.app(["pack", *map(str, arguments)], standalone_mode=False)
    return capsys.readouterr().out


def test_ranks_pack_shards_and_merge_finds_them(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "201":
        monkeypatch.setenv("RANK", rank)
        told = packed(capsys, table, tmp_path / "p", *OPTIONS)
        assert f"p.shard-{rank}-of-3" in told and f"spurmix merge --target {tmp_path / 'p'}" in told
    app.app(["merge", "--target", str(tmp_path / "p")], standalone_mode=False)
    assert PackedDataset(tmp_path / "p").splits == {"train": 30, "test": 10}
    told = packed(capsys, table, tmp_path / "one", *OPTIONS, "--shard", "0/1")
    assert "40 examples" in told and "merge" not in told


def test_layouts_of_texts_and_others(
    table: Path, tmp_path: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words"
    words.mkdir()
    inner = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "cat": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.save(str(words / "tokenizer.json"))
    options = ("--tokenizer", words, "--max-length", 3)
    (tmp_path / "t.csv").write_text('text,kind,part\n"a cat, a cat",x,train\ncat,y,test\n,y,test\n')
    rows = ("--layout", "table", "--text", "text", "--label", "kind", "--split", "part", *options)
    told = packed(capsys, tmp_path / "t.csv", tmp_path / "t", *rows, "--broken", "skip")
    assert "skipped 1 unreadable example" in told
    data = PackedDataset(tmp_path / "t")
    assert data.splits == {"train": 1, "test": 1} and data.source().longest == 3  # type: ignore[union-attr]

    header = ["split", "comment_text", "toxicity", *IDENTITIES]
    lines = [f"train,cat {n},{n % 2}," + ",".join(str(int(k == n)) for k in range(8)) for n in range(8)]
    (tmp_path / FILE).write_text("\n".join([",".join(header), *lines, "train,,0" + ",0" * 8]))
    with pytest.raises(ValueError, match="is empty"):
        packed(capsys, tmp_path, tmp_path / "c", "--layout", "civilcomments", *options)
    told = packed(capsys, tmp_path, tmp_path / "c", "--layout", "civilcomments", *options, "--broken", "skip")
    assert "dropped 1 comment without text: rows 8" in told
    cells = PackedDataset(tmp_path / "c").cells()
    assert cells is not None and cells[0].sum() == 8
    shown = command("inspect", tmp_path / "c")
    assert shown.returncode == 0 and "any identity" in shown.stdout, shown.stderr

    image = np.arange(24, dtype=np.uint8).reshape(1, 4, 6)
    for name, array in (("images-idx3", image), ("labels-idx1", np.zeros(1, dtype=np.uint8))):
        head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (tmp_path / f"t10k-{name}-ubyte").write_bytes(head + array.tobytes())
    assert "1 example in" in packed(capsys, tmp_path, tmp_path / "m", "--layout", "mnist")
    assert PackedDataset(tmp_path / "m").array.shape == (1, 28, 28, 3)

    rows_of = datasets.Dataset.from_dict({"text": ["a", "cat"], "label": [0, 1], "hat": ["x", None]})
    rows_of.save_to_disk(str(tmp_path / "hf"))
    capsys.readouterr()
    options = (*options, "--text", "text", "--attribute", "hat")
    told = packed(capsys, tmp_path / "hf", tmp_path / "h", "--layout", "huggingface", *options)
    assert "hat is unknown in 1 of 2 rows" in told and "2 examples" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pack", "nowhere.csv", "t", "--layout", "table"), "there is no file nowhere.csv"),
        (("pack", "nowhere", "t"), "there is no folder nowhere"),
        (("pack", "nowhere", "t", "--shard", "x"), "--shard must be i/n, such as 0/4, got 'x'"),
        (("pack", "a", "t", "--text", "x"), "--text is for --layout table, huggingface, not folder"),
        (
            ("pack", "a", "t", "--attribute", "x"),
            "--attribute is for --layout table, celeba, civilcomments, huggingface, not",
        ),
        (("pack", "a", "t", "--layout", "table", "--text", "x", "--fit", "exact"), "--fit is for images"),
        (("pack", "a", "t", "--layout", "civilcomments"), "--tokenizer: texts need the folder of a tokenizer"),
        (("pack", "a", "t", "--max-length", "3"), "--tokenizer and --max-length are for texts"),
        (("features", "nowhere", "t", "--model", "small"), "nowhere is not a folder"),
        (("merge", "--target", "t"), "there are no shards t.shard-i-of-n"),
        (("inspect", "nowhere"), "nowhere is not a folder"),
        (("verify", "nowhere"), "nowhere is not a folder"),
        (("audit", "nowhere", "--policy", "magic"), "--policy must be one of erm,"),
        (("merge", "nowhere", "--target", "t"), "nowhere is not a folder"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_policy_is_named() -> None:
    assert set(every_policy()) == {*__import__("spurmix").policies.__all__} - {"upweight"}
