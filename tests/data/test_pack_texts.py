"""Packing texts: ids against TokenSource, tokenizers that travel, cells of CivilComments, broken texts, kills, full disks."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from spurmix import MixLoader, TokenSource, policies, read_civilcomments
from spurmix.data.dataset import tokenize as tokenise
from spurmix.data.dataset import tokenizer_files as tokenizers
from spurmix.data.dataset.packed import DatasetError, PackedDataset, sealed
from spurmix.data.pack import job
from spurmix.data.pack import manifest as listing
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts import published
from spurmix.data.pack.layouts.civilcomments import FILE, IDENTITIES, SPLITS
from spurmix.data.pack.merge import merge, shards_of
from spurmix.data.pack.texts import pack_texts

RNG = np.random.default_rng(7)
WORDS = [f"w{k}" for k in range(30)]


def tokenizer(special: bool = True) -> Any:
    vocabulary = {w: k for k, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=20, **names)


def sentences(count: int) -> list[str]:
    return [
        " ".join(RNG.choice(WORDS, RNG.integers(0, 30))) + ("\nnew, line" if n % 5 == 0 else "") for n in range(count)
    ]


def table(path: Path, texts: list[Any], **columns: list[Any]) -> Path:
    known = {"text": pyarrow.array(texts, pyarrow.string()), "label": [n % 2 for n in range(len(texts))], **columns}
    pyarrow.parquet.write_table(pyarrow.table(known), path)
    return path


def test_a_table_of_texts(tmp_path: Path) -> None:
    texts = sentences(40)
    parts, places = [("b", "a")[n % 2] for n in range(40)], [n // 2 % 3 for n in range(40)]
    found = listing.from_table(
        table(tmp_path / "t.parquet", texts, part=parts, place=places), text="text", split="part", attributes=["place"]
    )
    report = pack_texts(found, tmp_path / "p", tokenizer())
    data = PackedDataset(report.path)
    assert data.splits == {"b": 20, "a": 20} and data.verify() == [] and data.cells() is None
    for split, rows in (("b", range(0, 40, 2)), ("a", range(1, 40, 2))):
        part: Any = data.split(split)
        expected = TokenSource.from_texts([texts[n] for n in rows], tokenizer())
        source = part.source()
        assert np.array_equal(source.ids, expected.ids) and np.array_equal(source.offsets, expected.offsets)
        assert source.fingerprint() == expected.fingerprint() and source.longest == 20
        assert part.metadata.sources == [f"t.parquet#{n}" for n in rows]
    names = {p.name for p in report.path.iterdir()}
    assert names == {
        "dataset.json",
        "metadata.parquet",
        "tokens.npy",
        "token_offsets.npy",
        tokenizers.FILE,
        tokenizers.CONFIG,
    }
    source.check_tokenizer(data.tokenizer())
    for settings in (data.tokenizer(), tokenizers.load_tokenizer(report.path)):
        assert (settings.model_max_length, settings.pad_token_id, settings.sep_token) == (20, 0, "[SEP]")
        assert settings(texts[0], truncation=True)["input_ids"] == tokenizer()(texts[0], truncation=True)["input_ids"]
    batch = next(iter(MixLoader(data.split("a").source(), data.split("a").groups(), policies.group_balanced(), 4)))
    assert batch.input.ids.shape[0] == 4

    (tmp_path / "plain").mkdir()
    tokenizer().backend_tokenizer.save(str(tmp_path / "plain" / tokenizers.FILE))
    pack_texts(found, tmp_path / "p2", tmp_path / "plain", max_length=6, limit=3)
    short = PackedDataset(tmp_path / "p2")
    assert short.splits == {"b": 3, "a": 3} and short.made["tokens"]["max_length"] == 6
    assert short.source().fingerprint() != data.source().fingerprint()
    assert short.made["tokens"]["tokenizer"] == data.made["tokens"]["tokenizer"]
    (tmp_path / "t.csv").write_text('text,label\n123,0\n"a ""b"",\nc",1\n')
    numbers = listing.from_table(tmp_path / "t.csv", text="text")
    assert [numbers.reader()(n) for n in range(2)] == ["123", 'a "b",\nc']


def test_a_tokenizer_that_was_changed_is_refused(tmp_path: Path) -> None:
    pack_texts(listing.from_table(table(tmp_path / "t.parquet", ["w1"]), text="text"), tmp_path / "p", tokenizer())
    file = tmp_path / "p" / tokenizers.FILE
    file.write_text(file.read_text().replace('"w7"', '"v7"'))
    data = PackedDataset(tmp_path / "p")
    assert tokenizers.FILE in str(data.verify()[0])
    with pytest.raises(DatasetError, match="is not the tokenizer that made the tokens"):
        data.tokenizer()
    file.unlink()
    with pytest.raises(DatasetError, match=r"tokenizer\.json has gone"):
        PackedDataset(tmp_path / "p")


def write_comments(folder: Path, count: int = 60) -> Path:
    with (folder / FILE).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "split", "comment_text", "toxicity", *IDENTITIES, "identity_any"])
        for n in range(count):
            mentioned = [round(RNG.random() ** 4, 2) for _ in IDENTITIES]
            writer.writerow(
                [n, SPLITS[n % 3], "" if n in (4, 9) else f"w{n % 30} é", round(RNG.random(), 2), *mentioned, 0]
            )
    return folder


@pytest.mark.parametrize("attribute", ["any", "black"])
def test_civilcomments(attribute: str, tmp_path: Path) -> None:
    data = read_civilcomments(write_comments(tmp_path), attribute=attribute, drop_empty=True)
    with pytest.raises(ValueError, match=r"row 4\), column 'comment_text': is empty"):
        published.civilcomments(tmp_path)
    found = published.civilcomments(tmp_path, attribute=attribute, drop_empty=True)
    assert found.notes == ("2 comments without any text left out: rows 4, 9",)
    pack_texts(found, tmp_path / "p", tokenizer(), max_length=9)
    packed = PackedDataset(tmp_path / "p")
    first = "any identity" if attribute == "any" else "black"
    assert next(iter(packed.metadata.attributes)) == first and set(packed.metadata.attributes) == {first, *IDENTITIES}
    for split in SPLITS:
        theirs, ours = data.split(split), packed.split(split)
        cells = ours.cells()
        assert cells is not None
        membership, names = cells
        assert np.array_equal(membership, theirs.membership()) and names == theirs.cell_names
        assert membership.dtype == np.bool_ and membership.any()
        a, b = ours.groups(), theirs.groups()
        assert np.array_equal(a.group_ids(), b.group_ids())
        assert a.num_groups == b.num_groups
        assert all(a.group_name(g) == b.group_name(g) for g in range(a.num_groups))
        assert ours.metadata.sources == [f"{FILE}#{n}" for n in theirs.rows]
    description = tmp_path / "p" / "dataset.json"
    changed = json.loads(description.read_text())
    changed["made"]["cells"] = ["hat"]
    description.write_text(json.dumps(sealed(changed)))
    with pytest.raises(DatasetError, match="cells must be names of attributes"):
        PackedDataset(tmp_path / "p")


BROKEN = ["w1", None, "w2 \ud83d w3", "", "w4"]


def test_broken_texts_are_listed_then_left_out(tmp_path: Path) -> None:
    class Column(list[Any]):
        def digest(self) -> str:
            return "x"

    whole = listing.from_table(table(tmp_path / "t.parquet", ["w"] * 5), text="text")
    found = listing.replace(whole, content=Column(BROKEN))
    for special, count in ((True, 2), (False, 3)):
        target = tmp_path / f"p{special}"
        with pytest.raises(
            job.BrokenFiles, match=rf"{count} texts cannot be packed: t.parquet#1: is missing; t.parquet#2"
        ):
            pack_texts(found, target, tokenizer(special))
        assert not target.exists()
        for end, resumed in (("", 5), ("again", 0)):
            report = pack_texts(found, f"{target}{end}", tokenizer(special), broken="skip")
            data = PackedDataset(report.path)
            expected = TokenSource.from_texts(["w1", "", "w4"] if special else ["w1", "w4"], tokenizer(special))
            assert np.array_equal(data.source().ids, expected.ids)  # type: ignore[union-attr]
            assert report.resumed == resumed and data.made["broken"] == count and data.verify() == []
            reasons = [json.loads(row)["reason"] for row in (report.path / "broken.jsonl").read_text().splitlines()]
            assert reasons[:2] == ["is missing", "has a lone surrogate at character 3, which is half of a character"]
            assert reasons[2:] == ([] if special else [tokenise.NO_TOKENS])
    with pytest.raises(job.BrokenFiles, match="1 text cannot"):
        pack_texts(
            listing.replace(found, content=Column([None] * 5)).ordered(1), tmp_path / "p9", tokenizer(), broken="skip"
        )


@pytest.mark.parametrize("fast", [True, False])
def test_a_lone_surrogate_is_named(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "CHUNK", 4)
    words = tokenizer() if fast else tokenizer().backend_tokenizer
    with pytest.raises(ValueError, match=r"texts\[6\]: has a lone surrogate at character 1, .*mend it or leave it out"):
        TokenSource.from_texts(["w1"] * 6 + ["w\udc00"], words)


def test_shards_merge_to_what_one_process_packs(tmp_path: Path) -> None:
    texts = [*sentences(30), None]
    found = listing.from_table(table(tmp_path / "t.parquet", texts), text="text")
    pack_texts(found, tmp_path / "whole", tokenizer(), broken="skip")
    for k in (2, 0):
        pack_texts(found, tmp_path / "p", tokenizer(), broken="skip", shard=(k, 3))
    with pytest.raises(ValueError, match=r"of 3 shards of .* these are not packed: 1"):
        shards_of(tmp_path / "p")
    pack_texts(found, tmp_path / "p", tokenizer(), broken="skip", shard=(1, 3))
    report = merge(shards_of(tmp_path / "p"), tmp_path / "p")
    whole, merged = PackedDataset(tmp_path / "whole"), PackedDataset(report.path)
    for name in ("tokens.npy", "token_offsets.npy", "metadata.parquet", tokenizers.FILE, "broken.jsonl"):
        assert (whole.path / name).read_bytes() == (merged.path / name).read_bytes()
    assert merged.verify() == [] and merged.made["broken"] == 1 and len(report.broken) == 1
    merged.source().check_tokenizer(merged.tokenizer())  # type: ignore[union-attr]
    pack_texts(found, tmp_path / "other", tokenizer(), broken="skip", max_length=4)
    with pytest.raises(ValueError, match="its tokenizer or max_length differ"):
        merge([whole.path, tmp_path / "other"], tmp_path / "wrong")
    (tmp_path / "p.shard-0-of-2").mkdir()
    with pytest.raises(ValueError, match=r"shards of .* of 2 and 3 parts"):
        shards_of(tmp_path / "p")
    with pytest.raises(ValueError, match="there are no shards"):
        shards_of(tmp_path / "q")


CHILD = """
import os, signal, sys
from spurmix.data.pack import manifest as listing
from spurmix.data.pack import texts as pack_texts
from spurmix.data.dataset import packed as store
from spurmix.data.dataset import tokenize as tokenise
tokenise.CHUNK = 16
calls = 0
def dying(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
class Dying:  # a file that is killed before it is written, and after half of it was
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
whole = pack_texts.Path.open
def opened(self, mode="r", *arguments, **options):
    file = whole(self, mode, *arguments, **options)
    return Dying(file) if mode in ("ab", "r+b") else file
pack_texts.Path.open = opened
pack_texts.Job.begin, pack_texts.Job.clear = dying(pack_texts.Job.begin), dying(pack_texts.Job.clear)
os.rename, os.replace = dying(os.rename), dying(os.replace)
from spurmix.data.pack import job
job.describe, job.write_metadata = dying(job.describe), dying(job.write_metadata)
report = pack_texts.pack_texts(listing.from_table(sys.argv[1], text="text"), sys.argv[2], sys.argv[3])
print(report.resumed, calls)
"""


def test_killed_anywhere_it_goes_on_and_nothing_wrong_ever_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child kills itself at the n-th of its steps; the second one while it goes on with what the first left."""
    monkeypatch.setattr(tokenise, "CHUNK", 16)
    rows, words = table(tmp_path / "t.parquet", sentences(90)), tmp_path / "words"
    words.mkdir()
    tokenizer().backend_tokenizer.save(str(words / tokenizers.FILE))
    pack_texts(listing.from_table(rows, text="text"), tmp_path / "sound", words)
    names = ("tokens.npy", "token_offsets.npy", "metadata.parquet")
    sound = [(tmp_path / "sound" / name).read_bytes() for name in names]
    resumed, rounds = [], ((2,), (6,), (9, 4), (16, 6), (28,), (32,))
    for number, steps in enumerate(rounds):
        target = tmp_path / f"p{number}"
        for step in steps:
            command = [sys.executable, "-c", CHILD, str(rows), str(target), str(words), str(step)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == -signal.SIGKILL, (step, done.stdout, done.stderr)
            for folder in (target, tmp_path / f"{target.name}.packing"):
                if (folder / "dataset.json").exists():
                    assert [(folder / name).read_bytes() for name in names] == sound
        if not target.exists():
            resumed.append(pack_texts(listing.from_table(rows, text="text"), target, words).resumed)
        assert [(target / name).read_bytes() for name in names] == sound and PackedDataset(target).verify() == []
    assert resumed[0] == 0 and {16, 90} < set(resumed) and len({*resumed} - {0, 16, 90}) == 1, resumed


def test_a_changed_table_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "CHUNK", 4)
    first = [*sentences(11), None]
    with pytest.raises(job.BrokenFiles):
        pack_texts(listing.from_table(table(tmp_path / "t.parquet", first), text="text"), tmp_path / "p", tokenizer())
    second = ["w3", *first[1:-1], "w4"]
    report = pack_texts(
        listing.from_table(table(tmp_path / "t.parquet", second), text="text"), tmp_path / "p", tokenizer()
    )
    expected = TokenSource.from_texts([str(text) for text in second], tokenizer())
    assert report.resumed == 0
    assert np.array_equal(PackedDataset(report.path).source().ids, expected.ids)  # type: ignore[union-attr]


FULL = """
import resource, sys
from spurmix.data.pack import manifest as listing
from spurmix.data.pack import texts as pack_texts
from spurmix.data.dataset import tokenize as tokenise
tokenise.CHUNK = 64
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)  # a disk that takes no more
pack_texts.pack_texts(listing.from_table(sys.argv[1], text="text"), sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize("limit", [4000, 17_000])
def test_a_disk_that_fills_up_is_one_error_and_the_job_goes_on(limit: int, tmp_path: Path) -> None:
    rows = table(tmp_path / "t.parquet", sentences(1000))
    (tmp_path / "words").mkdir()
    tokenizer().backend_tokenizer.save(str(tmp_path / "words" / tokenizers.FILE))
    command = [sys.executable, "-c", FULL, str(rows), str(tmp_path / "p"), str(tmp_path / "words"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "no space left for" in done.stderr.splitlines()[-1], done.stderr
    assert "what is done is kept" in done.stderr and not (tmp_path / "p").exists()
    found = listing.from_table(rows, text="text")
    report = pack_texts(found, tmp_path / "p", tmp_path / "words")
    pack_texts(found, tmp_path / "q", tmp_path / "words")
    assert report.resumed % tokenise.CHUNK == 0 and PackedDataset(tmp_path / "p").verify() == []
    assert (tmp_path / "p/tokens.npy").read_bytes() == (tmp_path / "q/tokens.npy").read_bytes()


def test_bad_arguments(tmp_path: Path) -> None:
    found = listing.from_table(table(tmp_path / "t.parquet", ["w1"] * 3), text="text")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / tokenizers.FILE).write_text("{")
    (tmp_path / "empty").mkdir()
    slow: Any = type("Slow", (), {"__call__": None, "get_vocab": None})()
    for words, options, message in (
        (tokenizer(), dict(max_length=0), "max_length must be 1 or more"),
        (tokenizer(), dict(broken="hide"), "broken must be"),
        (tokenizer(), dict(shard=(3, 3)), "shard must be"),
        (tokenizer(), dict(shard=(0, 9)), "shard 0 of 9 has no examples"),
        (tmp_path / "nowhere", {}, "tokenizer: there is no folder"),
        (tmp_path / "empty", {}, "holds none that can be read"),
        (tmp_path / "broken", {}, "holds none that can be read"),
        (slow, {}, "must be a fast one"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            pack_texts(found, tmp_path / "p", words, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="listing holds texts; see pack_texts"):
        pack_images(found, tmp_path / "p")
    with pytest.raises(ValueError, match="must be a column of texts, got int64"):
        listing.from_table(tmp_path / "t.parquet", text="label")
    with pytest.raises(ValueError, match="no column 'words'"):
        listing.from_table(tmp_path / "t.parquet", text="words")
    assert not (tmp_path / "p").exists()
