"""CivilComments in the format of WILDS: a generated file is read back, invalid values are errors that name the row."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from spurmix import MixLoader, TokenSource, policies
from spurmix.data.pack.layouts.civilcomments import FILE, IDENTITIES, SPLITS, read_civilcomments
from spurmix.train.metrics import evaluate_logits

COLUMNS = ["", "id", "split", "comment_text", "toxicity", *IDENTITIES, "asian", "identity_any"]
COUNT = 60


def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    made = []
    for n in range(COUNT):
        row: dict[str, Any] = {"": n, "id": 1000 + n, "split": SPLITS[n % 3], "toxicity": round(rng.random(), 3)}
        row["comment_text"] = f'comment {n}, "quoted",\nof two lines; é' if n % 4 == 0 else f"comment {n}"
        row.update({name: round(rng.random() ** 7, 3) for name in IDENTITIES})
        row["asian"] = rng.integers(0, 2)
        made.append(row)
    made[7]["toxicity"], made[8]["toxicity"], made[9]["black"] = 0.5, 0.4999, 0.5
    made[10]["white"] = ""
    made[12].update(female=1.0, toxicity=0.9)
    made[15].update(female=0.6, toxicity=0.1)
    made[18].update(black=0.9, toxicity=0.8)
    for row in made:
        row["identity_any"] = int(row["asian"] or any(row[name] != "" and row[name] >= 0.5 for name in IDENTITIES))
    return made


def write(folder: Path, content: list[dict[str, Any]], columns: list[str] = COLUMNS, encoding: str = "utf-8") -> Path:
    file = folder / FILE
    with file.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(content)
    return file


def test_values_equal_those_written(tmp_path: Path) -> None:
    content = rows()
    data = read_civilcomments(write(tmp_path, content))
    assert len(data) == COUNT
    assert data.texts == [r["comment_text"] for r in content]
    assert data.labels.tolist() == [r["toxicity"] >= 0.5 for r in content]
    assert data.labels[7:9].tolist() == [1, 0]
    expected = [[r[name] != "" and r[name] >= 0.5 for name in IDENTITIES] for r in content]
    assert data.identities.tolist() == expected
    assert data.attributes.tolist() == [any(e) for e in expected]
    assert [SPLITS[s] for s in data.splits] == [r["split"] for r in content]
    for encoding in ("utf-8-sig", "utf-8"):
        write(tmp_path, content, encoding=encoding)
        assert read_civilcomments(tmp_path).texts == data.texts


def test_splits_groups_and_overlapping_cells(tmp_path: Path) -> None:
    content = rows()
    data = read_civilcomments(write(tmp_path, content))
    parts = [data.split(name) for name in SPLITS]
    assert sum(map(len, parts)) == COUNT
    train = parts[0]
    assert train.texts == [r["comment_text"] for r in content if r["split"] == "train"]
    groups = train.groups()
    assert groups.num_groups == 4
    assert groups.group_name(3) == "toxic, any identity"
    policies.group_balanced().audit(groups)
    members = train.membership()
    assert (members.shape, members.dtype) == ((len(train), 16), np.bool_)
    assert len(train.cell_names) == 16
    assert train.cell_names[:3] == ("male, not toxic", "male, toxic", "female, not toxic")
    for k, identity in enumerate(IDENTITIES):
        for y in (0, 1):
            expected = [
                r[identity] != "" and r[identity] >= 0.5 and (r["toxicity"] >= 0.5) == bool(y)
                for r in content
                if r["split"] == "train"
            ]
            assert members[:, 2 * k + y].tolist() == expected
    assert members.sum(axis=1).max() > 1
    with pytest.raises(ValueError, match="split must be one of"):
        data.split("validation")


def test_evaluation_of_cells(tmp_path: Path) -> None:
    train = read_civilcomments(write(tmp_path, rows())).split("train")
    words = sorted({word for text in train.texts for word in text.split()})
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["[PAD]", "[UNK]", *words])}, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    source = TokenSource.from_texts(train.texts, core)
    batch = MixLoader(source, train.groups(), policies.group_balanced(), 8).batch(0)
    assert torch.bincount(batch.group).tolist() == [2, 2, 2, 2]
    assert batch.label.tolist() == train.labels[batch.index].tolist()
    # A model that predicts "toxic" for every comment that mentions "female".
    logits = np.stack([np.zeros(len(train)), train.identities[:, 1] - 0.5], axis=1)
    report = evaluate_logits(logits, train.groups(), membership=train.membership(), cell_names=train.cell_names)
    by_name = {cell.name: cell for cell in report.cells}
    assert by_name["female, not toxic"].accuracy == 0.0
    assert by_name["female, toxic"].accuracy == 1.0
    assert report.worst_group == 0.0
    assert by_name["black, toxic"].count == int((train.identities[:, 6] & (train.labels == 1)).sum())


@pytest.mark.parametrize("attribute", ["black", "identity_any", "asian"])
def test_training_attribute_from_a_column(tmp_path: Path, attribute: str) -> None:
    content = rows()
    data = read_civilcomments(write(tmp_path, content), attribute=attribute, identities=["black", "white"])
    assert data.attributes.tolist() == [r[attribute] >= 0.5 for r in content]
    assert data.membership().shape == (COUNT, 4)
    assert data.groups().group_name(0) == f"not toxic, no {attribute}"


def test_empty_comments_are_errors_or_dropped(tmp_path: Path) -> None:
    content = rows()
    content[3]["comment_text"], content[20]["comment_text"] = "", " \n"
    file = write(tmp_path, content)
    with pytest.raises(ValueError, match="row 3, column 'comment_text': is empty"):
        read_civilcomments(file)
    data = read_civilcomments(file, drop_empty=True)
    assert len(data) == COUNT - 2
    left = [r for n, r in enumerate(content) if n not in (3, 20)]
    assert data.texts == [r["comment_text"] for r in left]
    assert data.labels.tolist() == [r["toxicity"] >= 0.5 for r in left]
    assert data.membership().shape == (COUNT - 2, 16)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(toxicity=""), "row 5, column 'toxicity': is missing"),
        (dict(toxicity="nan"), "row 5, column 'toxicity': is missing"),
        (dict(toxicity="high"), "Row #7: CSV conversion error to double: invalid value 'high'"),
        (dict(toxicity="1.5"), "row 5, column 'toxicity': must be a number in [0, 1], got 1.5"),
        (dict(muslim="yes"), "Row #7: CSV conversion error to double: invalid value 'yes'"),
        (dict(muslim="-inf"), "row 5, column 'muslim': must be a number"),
        (dict(split="dev"), "row 5, column 'split': must be one of train, val, test, got 'dev'"),
    ],
)
def test_invalid_value_names_row_and_column(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    content = rows()
    content[5].update(change)
    with pytest.raises(ValueError) as caught:
        read_civilcomments(write(tmp_path, content))
    assert text in str(caught.value)


def test_missing_and_repeated_columns(tmp_path: Path) -> None:
    file = write(tmp_path, rows(), [c for c in COLUMNS if c != "LGBTQ"])
    with pytest.raises(ValueError, match="must have one column 'LGBTQ', it has 0; the columns are '', 'id', 'split'"):
        read_civilcomments(file)
    file = write(tmp_path, rows(), [*COLUMNS, "black"])
    with pytest.raises(ValueError, match="must have one column 'black', it has 2"):
        read_civilcomments(file)
    file = write(tmp_path, rows())
    with pytest.raises(ValueError, match="must have one column 'latino', it has 0"):
        read_civilcomments(file, identities=["latino"])
    with pytest.raises(ValueError, match="must have one column 'latino', it has 0"):
        read_civilcomments(file, attribute="latino")
    for wrong in ("male", [], ["male", "male"]):
        with pytest.raises((TypeError, ValueError), match="identities must be"):
            read_civilcomments(file, identities=wrong)


HEAD = "comment_text,split,toxicity,male\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is empty"),
        (HEAD, "has a header, but no comments"),
        (
            HEAD + "fine,train,0.1,0\n" * 3 + '"never closed,train,0.1,0\nfine,train,0.1,0\n',
            "Row #5: Expected 4 columns, got 1",
        ),
        (
            HEAD + '"never closed,train,0.1,0\nfine,train,0.1,0\nends",train,0.1,0\n',
            "row 0, column 'comment_text': contains other rows; is a closing quote missing?",
        ),
        (HEAD + "fine,train,0.1,0\none, two,train,0.1,0\n", "Row #3: Expected 4 columns, got 5"),
        (HEAD + "fine,train,0.1,0\nshort,train\n", "Row #3: Expected 4 columns, got 2"),
        (
            HEAD + '"' + "x" * 200_000 + "\n" * 3 + '",train,0.1,0\n',
            "row 0, column 'comment_text': contains other rows",
        ),
        (HEAD + "fine,train,0.1,0\nlong," + "x" * 5000 + ",0.1,0\n", "has 5,000 bytes in row 1, column 'split'"),
        (HEAD + "fine,train,0.1,0\nlong," + "x" * 500 + ",0.1,0\n", "got '" + "x" * 78 + "…"),
        (HEAD.replace("male", "x" * 500), "it has 0; the columns are 'comment_text', 'split', 'toxicity', 'xxx"),
    ],
)
def test_invalid_csv_names_the_row(tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "comments.csv"
    file.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_civilcomments(file, identities=["male"])
    assert text in str(caught.value)
    assert "comments.csv" in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(file))


def test_empty_lines_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "comments.csv"
    file.write_text(HEAD + "fine,train,0.1,0\n\nfine too,val,0.9,1\n")
    assert read_civilcomments(file, identities=["male"]).texts == ["fine", "fine too"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_errors(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "comments.csv"
    file.write_bytes((HEAD + "fine,train,0.1,0\n" * 5000 + "café,train,0.1,0\n").encode(encoding))
    message = r"Row #5002: .*invalid UTF8" if encoding == "latin-1" else "is not UTF-8"
    with pytest.raises(ValueError, match=message):
        read_civilcomments(file, identities=["male"])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_civilcomments(tmp_path)
