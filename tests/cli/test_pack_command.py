"""`spurmix pack`: layouts and invalid options."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from spurmix.cli import app
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.layouts.civilcomments import FILE, IDENTITIES

datasets: Any = importlib.import_module("datasets")


def test_pack_as_a_process(table: Path, table_options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spurmix", "pack", str(table), str(tmp_path / "packed"), *table_options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "40 examples" in done.stdout and done.stderr == "", done.stderr


def pack(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Run `spurmix pack` in this process and return its output. Errors are raised."""
    app.app(["pack", *map(str, arguments)], standalone_mode=False)
    return capsys.readouterr().out


def test_layouts_of_texts_and_others(tmp_path: Path, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = tmp_path / "words"
    words.mkdir()
    inner = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "cat": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.save(str(words / "tokenizer.json"))
    options = ("--tokenizer", words, "--max-length", 3)
    (tmp_path / "t.csv").write_text('text,kind,part\n"a cat, a cat",x,train\ncat,y,test\n,y,test\n')
    rows = ("--layout", "table", "--text", "text", "--label", "kind", "--split", "part", *options)
    output = pack(capsys, tmp_path / "t.csv", tmp_path / "t", *rows, "--broken", "skip")
    assert "skipped 1 unreadable example" in output
    data = PackedDataset(tmp_path / "t")
    assert data.splits == {"train": 1, "test": 1} and data.source().longest == 3  # type: ignore[union-attr]

    header = ["split", "comment_text", "toxicity", *IDENTITIES]
    lines = [f"train,cat {n},{n % 2}," + ",".join(str(int(k == n)) for k in range(8)) for n in range(8)]
    (tmp_path / FILE).write_text("\n".join([",".join(header), *lines, "train,,0" + ",0" * 8]))
    with pytest.raises(ValueError, match="is empty"):
        pack(capsys, tmp_path, tmp_path / "c", "--layout", "civilcomments", *options)
    output = pack(capsys, tmp_path, tmp_path / "c", "--layout", "civilcomments", *options, "--broken", "skip")
    assert "dropped 1 comment without text: rows 8" in output
    cells = PackedDataset(tmp_path / "c").cells()
    assert cells is not None and cells[0].sum() == 8
    shown = command("inspect", tmp_path / "c")
    assert shown.returncode == 0 and "any identity" in shown.stdout, shown.stderr

    image = np.arange(24, dtype=np.uint8).reshape(1, 4, 6)
    for name, array in (("images-idx3", image), ("labels-idx1", np.zeros(1, dtype=np.uint8))):
        head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (tmp_path / f"t10k-{name}-ubyte").write_bytes(head + array.tobytes())
    assert "1 example in" in pack(capsys, tmp_path, tmp_path / "m", "--layout", "mnist")
    assert PackedDataset(tmp_path / "m").array.shape == (1, 28, 28, 3)

    rows_of = datasets.Dataset.from_dict({"text": ["a", "cat"], "label": [0, 1], "hat": ["x", None]})
    rows_of.save_to_disk(str(tmp_path / "hf"))
    capsys.readouterr()
    options = (*options, "--text", "text", "--attribute", "hat")
    output = pack(capsys, tmp_path / "hf", tmp_path / "h", "--layout", "huggingface", *options)
    assert "hat is unknown in 1 of 2 rows" in output and "2 examples" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pack", "nowhere.csv", "t", "--layout", "table"), "there is no file nowhere.csv"),
        (("pack", "nowhere", "t"), "there is no folder nowhere"),
        (("pack", "nowhere", "t", "--shard", "x"), "--shard must be i/n, for example 0/4, got 'x'"),
        (("pack", "a", "t", "--text", "x"), "--text is for --layout table, huggingface, not folder"),
        (
            ("pack", "a", "t", "--attribute", "x"),
            "--attribute is for --layout table, celeba, civilcomments, huggingface, not",
        ),
        (("pack", "a", "t", "--layout", "table", "--text", "x", "--fit", "exact"), "--fit is for images"),
        (("pack", "a", "t", "--layout", "civilcomments"), "--tokenizer is required to pack texts"),
        (("pack", "a", "t", "--max-length", "3"), "--max-length is for texts"),
        (("features", "nowhere", "t", "--model", "small"), "nowhere is not a folder"),
        (("merge", "--target", "t"), "there are no shards t.shard-i-of-n"),
        (("inspect", "nowhere"), "nowhere is not a folder"),
        (("verify", "nowhere"), "nowhere is not a folder"),
        (("audit", "nowhere", "--policy", "magic"), "--policy must be one of erm,"),
        (("audit", "nowhere", "--policy", "dispell"), "got 'dispell'; did you mean 'dispel'?"),
        (("merge", "nowhere", "--target", "t"), "nowhere is not a folder"),
    ],
)
def test_errors_of_dataset_commands_are_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
