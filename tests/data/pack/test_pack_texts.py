"""`pack_texts`: ids, tokenizers, CivilComments and unreadable texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_samples import edit_description
from text_samples import sentences, tokenizer, write_comments, write_table

from spurmix import MixLoader, TokenSource, policies, read_civilcomments
from spurmix.data.dataset import tokenize
from spurmix.data.dataset.format import DatasetError, with_checksum
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.dataset.tokenizer_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, load_tokenizer
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.job import BrokenFiles
from spurmix.data.pack.layouts.civilcomments import FILE, IDENTITIES, SPLITS, from_civilcomments
from spurmix.data.pack.layouts.table import from_table
from spurmix.data.pack.merge import merge, shards_of
from spurmix.data.pack.texts import pack_texts


def test_a_table_of_texts(tmp_path: Path) -> None:
    texts = sentences(40)
    parts, places = [("b", "a")[n % 2] for n in range(40)], [n // 2 % 3 for n in range(40)]
    found = from_table(
        write_table(tmp_path / "t.parquet", texts, part=parts, place=places),
        text="text",
        split="part",
        attributes=["place"],
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
        TOKENIZER_FILE,
        TOKENIZER_CONFIG_FILE,
    }
    source.check_tokenizer(data.tokenizer())
    for settings in (data.tokenizer(), load_tokenizer(report.path)):
        assert (settings.model_max_length, settings.pad_token_id, settings.sep_token) == (20, 0, "[SEP]")
        assert settings(texts[0], truncation=True)["input_ids"] == tokenizer()(texts[0], truncation=True)["input_ids"]
    batch = next(iter(MixLoader(data.split("a").source(), data.split("a").groups(), policies.group_balanced(), 4)))
    assert batch.input.ids.shape[0] == 4

    (tmp_path / "plain").mkdir()
    tokenizer().backend_tokenizer.save(str(tmp_path / "plain" / TOKENIZER_FILE))
    pack_texts(found, tmp_path / "p2", tmp_path / "plain", max_length=6, limit=3)
    short = PackedDataset(tmp_path / "p2")
    assert short.splits == {"b": 3, "a": 3} and short.provenance["tokens"]["max_length"] == 6
    assert short.source().fingerprint() != data.source().fingerprint()
    assert short.provenance["tokens"]["tokenizer"] == data.provenance["tokens"]["tokenizer"]
    (tmp_path / "t.csv").write_text('text,label\n123,0\n"a ""b"",\nc",1\n')
    numbers = from_table(tmp_path / "t.csv", text="text")
    assert [numbers.reader()(n) for n in range(2)] == ["123", 'a "b",\nc']


def test_changed_tokenizer_is_an_error(tmp_path: Path) -> None:
    pack_texts(from_table(write_table(tmp_path / "t.parquet", ["w1"]), text="text"), tmp_path / "p", tokenizer())
    file = tmp_path / "p" / TOKENIZER_FILE
    file.write_text(file.read_text().replace('"w7"', '"v7"'))
    data = PackedDataset(tmp_path / "p")
    assert TOKENIZER_FILE in str(data.verify()[0])
    with pytest.raises(DatasetError, match="is not the tokenizer that made the tokens"):
        data.tokenizer()
    file.unlink()
    with pytest.raises(DatasetError, match=r"tokenizer\.json is missing"):
        PackedDataset(tmp_path / "p")


@pytest.mark.parametrize("attribute", ["any", "black"])
def test_civilcomments(attribute: str, tmp_path: Path) -> None:
    data = read_civilcomments(write_comments(tmp_path), attribute=attribute, drop_empty=True)
    with pytest.raises(ValueError, match=r"row 4, column 'comment_text': is empty"):
        from_civilcomments(tmp_path)
    found = from_civilcomments(tmp_path, attribute=attribute, drop_empty=True)
    assert found.notes == ("dropped 2 comments without text: rows 4, 9",)
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
    description.write_text(json.dumps(with_checksum(changed)))
    with pytest.raises(DatasetError, match="cells must be names of attributes"):
        PackedDataset(tmp_path / "p")


BROKEN = ["w1", None, "w2 \ud83d w3", "", "w4"]


def test_unreadable_texts_are_listed_and_skipped(tmp_path: Path) -> None:
    class Column(list[Any]):
        def digest(self) -> str:
            return "x"

    whole = from_table(write_table(tmp_path / "t.parquet", ["w"] * 5), text="text")
    found = replace(whole, samples=Column(BROKEN))
    for special, count in ((True, 2), (False, 3)):
        target = tmp_path / f"p{special}"
        with pytest.raises(BrokenFiles, match=rf"{count} texts cannot be packed: t.parquet#1: is missing; t.parquet#2"):
            pack_texts(found, target, tokenizer(special))
        assert not target.exists()
        for end, resumed in (("", 5), ("again", 0)):
            report = pack_texts(found, f"{target}{end}", tokenizer(special), broken="skip")
            data = PackedDataset(report.path)
            expected = TokenSource.from_texts(["w1", "", "w4"] if special else ["w1", "w4"], tokenizer(special))
            assert np.array_equal(data.source().ids, expected.ids)  # type: ignore[union-attr]
            assert report.resumed == resumed and data.provenance["broken"] == count and data.verify() == []
            reasons = [json.loads(row)["reason"] for row in (report.path / "broken.jsonl").read_text().splitlines()]
            assert reasons[:2] == ["is missing", "has a lone surrogate (half of a character) at position 3"]
            assert reasons[2:] == ([] if special else [tokenize.NO_TOKENS])
    with pytest.raises(BrokenFiles, match="1 text cannot"):
        pack_texts(replace(found, samples=Column([None] * 5)).ordered(1), tmp_path / "p9", tokenizer(), broken="skip")


@pytest.mark.parametrize("fast", [True, False])
def test_lone_surrogate_names_the_row(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "CHUNK", 4)
    words = tokenizer() if fast else tokenizer().backend_tokenizer
    with pytest.raises(
        ValueError, match=r"texts\[6\] has a lone surrogate .* at position 1; repair or remove the text"
    ):
        TokenSource.from_texts(["w1"] * 6 + ["w\udc00"], words)


def test_merged_text_shards_equal_one_dataset(tmp_path: Path) -> None:
    texts = [*sentences(30), None]
    found = from_table(write_table(tmp_path / "t.parquet", texts), text="text")
    pack_texts(found, tmp_path / "whole", tokenizer(), broken="skip")
    for k in (2, 0):
        pack_texts(found, tmp_path / "p", tokenizer(), broken="skip", shard=(k, 3))
    with pytest.raises(ValueError, match=r"shards 1 of 3 of .* are not packed"):
        shards_of(tmp_path / "p")
    pack_texts(found, tmp_path / "p", tokenizer(), broken="skip", shard=(1, 3))
    report = merge(shards_of(tmp_path / "p"), tmp_path / "p")
    whole, merged = PackedDataset(tmp_path / "whole"), PackedDataset(report.path)
    for name in ("tokens.npy", "token_offsets.npy", "metadata.parquet", TOKENIZER_FILE, "broken.jsonl"):
        assert (whole.path / name).read_bytes() == (merged.path / name).read_bytes()
    assert merged.verify() == [] and merged.provenance["broken"] == 1 and len(report.broken) == 1
    merged.source().check_tokenizer(merged.tokenizer())  # type: ignore[union-attr]
    pack_texts(found, tmp_path / "other", tokenizer(), broken="skip", max_length=4)
    with pytest.raises(ValueError, match=r"tokenizer or max_length of .*other must be the same"):
        merge([whole.path, tmp_path / "other"], tmp_path / "wrong")
    (tmp_path / "p.shard-0-of-2").mkdir()
    with pytest.raises(ValueError, match=r"shards of .* with n = 2 and 3"):
        shards_of(tmp_path / "p")
    with pytest.raises(ValueError, match="there are no shards"):
        shards_of(tmp_path / "q")


def test_bad_arguments(tmp_path: Path) -> None:
    found = from_table(write_table(tmp_path / "t.parquet", ["w1"] * 3), text="text")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / TOKENIZER_FILE).write_text("{")
    (tmp_path / "empty").mkdir()
    slow: Any = type("Slow", (), {"__call__": None, "get_vocab": None})()
    for words, options, message in (
        (tokenizer(), dict(max_length=0), "max_length must be 1 or more"),
        (tokenizer(), dict(broken="hide"), "broken must be"),
        (tokenizer(), dict(shard=(3, 3)), "shard must be"),
        (tokenizer(), dict(shard=(0, 9)), "shard 0 of 9 has no examples"),
        (tmp_path / "nowhere", {}, "tokenizer: there is no folder"),
        (tmp_path / "empty", {}, "no tokenizer can be read from"),
        (tmp_path / "broken", {}, "no tokenizer can be read from"),
        (slow, {}, "must be a fast tokenizer"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            pack_texts(found, tmp_path / "p", words, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="manifest must contain images, got texts; use pack_texts"):
        pack_images(found, tmp_path / "p")
    with pytest.raises(ValueError, match="must be a column of texts, got int64"):
        from_table(tmp_path / "t.parquet", text="label")
    with pytest.raises(ValueError, match="no column 'words'"):
        from_table(tmp_path / "t.parquet", text="words")
    assert not (tmp_path / "p").exists()


def test_side_of_padding_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    words = tokenizer()
    words.padding_side = "left"
    found = from_table(write_table(tmp_path / "t.parquet", ["w1 w2 w3", "w4"]), text="text")
    pack_texts(found, tmp_path / "p", words)
    source: Any = PackedDataset(tmp_path / "p").source()
    tokens = source.gather(torch.arange(2))
    assert tokens.padding_side == "left"
    assert tokens.mask[:, -1].all()
    loaded: Any = PackedDataset(tmp_path / "p").tokenizer()
    assert tokenize.padding_side(loaded) == "left"
    words.padding_side = "right"
    pack_texts(found, tmp_path / "q", words)
    assert "padding_side" not in PackedDataset(tmp_path / "q").provenance["tokens"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": {}}, r"\['tokens'\] has no 'vocab_size'"),
        ({"tokens": None}, r"\['tokens'\] must be an object, got None"),
        ({}, "the tokenizer's settings are missing"),
    ],
)
def test_datasets_without_valid_settings(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    pack_texts(from_table(write_table(tmp_path / "t.parquet", sentences(4)), text="text"), tmp_path / "p", tokenizer())
    made = PackedDataset(tmp_path / "p").provenance
    edit_description(tmp_path / "p", made={k: v for k, v in made.items() if k != "tokens"} | settings)
    with pytest.raises(DatasetError, match=message):
        PackedDataset(tmp_path / "p")
    edit_description(tmp_path / "p", made={**made, "tokens": {**made["tokens"], "new": 1}})
    with pytest.raises(DatasetError, match="unknown settings of texts: new; update spurmix"):
        PackedDataset(tmp_path / "p")
    edit_description(tmp_path / "p", made={**made, "tokens": {**made["tokens"], "pad_id": -1}})
    with pytest.raises(DatasetError, match="invalid texts or settings of texts: pad_id must be 0 or more, got -1"):
        PackedDataset(tmp_path / "p").source()
