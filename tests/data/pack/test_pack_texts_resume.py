"""`pack_texts` after kills, full disks and changed tables."""

from __future__ import annotations

import signal
from pathlib import Path

import forked_python
import numpy as np
import pytest
from text_samples import sentences, tokenizer, write_table

from spurmix import TokenSource
from spurmix.data.dataset import tokenize
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.dataset.tokenizer_files import TOKENIZER_FILE
from spurmix.data.pack.job import BrokenFiles
from spurmix.data.pack.layouts.table import from_table
from spurmix.data.pack.texts import pack_texts

CHILD = """
import os, signal, sys
from spurmix.data.pack import job, texts
from spurmix.data.pack.layouts.table import from_table
from spurmix.data.dataset import tokenize
tokenize.CHUNK = 16
calls = 0
def dying(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
class Dying:  # a file whose writing kills the process before the write, or after half of it
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
    def write(self, data):
        dying(lambda: None)()
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        dying(lambda: None)()
        self.file.write(data[len(data) // 2 :])
    def __getattr__(self, name):
        return getattr(self.file, name)
whole = texts.Path.open
def opened(self, mode="r", *arguments, **options):
    file = whole(self, mode, *arguments, **options)
    return Dying(file) if mode in ("ab", "r+b") else file
texts.Path.open = opened
job.PackJob.write_plan, job.PackJob.clear = dying(job.PackJob.write_plan), dying(job.PackJob.clear)
os.rename, os.replace = dying(os.rename), dying(os.replace)
job.write_description, job.write_metadata = dying(job.write_description), dying(job.write_metadata)
report = texts.pack_texts(from_table(sys.argv[1], text="text"), sys.argv[2], sys.argv[3])
print(report.resumed, calls)
"""


def test_killed_text_job_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child kills itself at its n-th step. A second child resumes and is killed too."""
    monkeypatch.setattr(tokenize, "CHUNK", 16)
    rows, words = write_table(tmp_path / "t.parquet", sentences(90)), tmp_path / "words"
    words.mkdir()
    tokenizer().backend_tokenizer.save(str(words / TOKENIZER_FILE))
    pack_texts(from_table(rows, text="text"), tmp_path / "expected", words)
    names = ("tokens.npy", "token_offsets.npy", "metadata.parquet")
    expected = [(tmp_path / "expected" / name).read_bytes() for name in names]
    resumed, rounds = [], ((2,), (6,), (9, 4), (16, 6), (28,), (32,))
    for number, steps in enumerate(rounds):
        target = tmp_path / f"p{number}"
        for step in steps:
            done = forked_python.run(CHILD, rows, target, words, step)
            assert done.returncode == -signal.SIGKILL, (step, done.stdout, done.stderr)
            for folder in (target, tmp_path / f"{target.name}.packing"):
                if (folder / "dataset.json").exists():
                    assert [(folder / name).read_bytes() for name in names] == expected
        if not target.exists():
            resumed.append(pack_texts(from_table(rows, text="text"), target, words).resumed)
        assert [(target / name).read_bytes() for name in names] == expected and PackedDataset(target).verify() == []
    assert resumed[0] == 0 and {16, 90} < set(resumed) and len({*resumed} - {0, 16, 90}) == 1, resumed


def test_changed_table_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "CHUNK", 4)
    first = [*sentences(11), None]
    with pytest.raises(BrokenFiles):
        pack_texts(from_table(write_table(tmp_path / "t.parquet", first), text="text"), tmp_path / "p", tokenizer())
    second = ["w3", *first[1:-1], "w4"]
    report = pack_texts(
        from_table(write_table(tmp_path / "t.parquet", second), text="text"), tmp_path / "p", tokenizer()
    )
    expected = TokenSource.from_texts([str(text) for text in second], tokenizer())
    assert report.resumed == 0
    assert np.array_equal(PackedDataset(report.path).source().ids, expected.ids)  # type: ignore[union-attr]


FULL = """
import resource, sys
from spurmix.data.dataset import tokenize
from spurmix.data.pack.layouts.table import from_table
from spurmix.data.pack.texts import pack_texts
tokenize.CHUNK = 64
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)  # as if the disk were full
pack_texts(from_table(sys.argv[1], text="text"), sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize("limit", [4000, 17_000])
def test_full_disk_is_an_error_and_the_job_resumes(limit: int, tmp_path: Path) -> None:
    rows = write_table(tmp_path / "t.parquet", sentences(1000))
    (tmp_path / "words").mkdir()
    tokenizer().backend_tokenizer.save(str(tmp_path / "words" / TOKENIZER_FILE))
    done = forked_python.run(FULL, rows, tmp_path / "p", tmp_path / "words", limit)
    assert done.returncode == 1 and "no space left for" in done.stderr.splitlines()[-1], done.stderr
    assert "completed work is kept" in done.stderr and not (tmp_path / "p").exists()
    found = from_table(rows, text="text")
    report = pack_texts(found, tmp_path / "p", tmp_path / "words")
    pack_texts(found, tmp_path / "q", tmp_path / "words")
    assert report.resumed % tokenize.CHUNK == 0 and PackedDataset(tmp_path / "p").verify() == []
    assert (tmp_path / "p/tokens.npy").read_bytes() == (tmp_path / "q/tokens.npy").read_bytes()
