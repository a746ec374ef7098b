"""Names on terminals and pages, and names that look the same."""

from __future__ import annotations

import numpy as np
import pytest

from spurmix.core import policies
from spurmix.core.groups import GroupIndex
from spurmix.core.names import (
    distinct_names,
    join_similarity_notes,
    listed,
    missing_notes,
    printable,
    shown,
    similar_names,
    similarity_notes,
    without_controls,
)

HOSTILE = "a\x1b[31mb\u202ec\nd\x07\x9b\u2028\ufeff\ud800\u2066"


def test_control_characters_are_escaped() -> None:
    assert printable(HOSTILE) == r"a\x1b[31mb\u202ec\nd\x07\x9b\u2028\ufeff\ud800\u2066"
    assert printable("Größe 猫 e\u0301 \u00a0") == "Größe 猫 e\u0301 \u00a0"
    assert printable("a\nb\t\x1b", keep="\n") == "a\nb\\t\\x1b" and printable(12) == "12"
    assert printable(HOSTILE).encode().decode().isprintable()


def test_control_characters_are_removed() -> None:
    assert without_controls(HOSTILE) == "a[31mbcd" and without_controls("a\nb\x1b", keep="\n") == "a\nb"


@pytest.mark.parametrize(
    "alike",
    [("cat", "cat "), ("é", "e\u0301"), ("a b", "a\u00a0b"), ("cat", "\ufeffcat"), ("ﬁsh", "fish"), ("a\u200bb", "ab")],
)
def test_names_that_look_the_same(alike: tuple[str, str]) -> None:
    assert similar_names([*alike, "dog", "Cat", alike[0]]) == [alike]
    (note,) = similarity_notes(["dog", *alike], "classes")
    assert note.startswith(f"classes {alike[0]!a} and {alike[1]!a} differ only by white space or Unicode form")


def test_different_names_are_not_noted() -> None:
    assert similar_names(["cat", "Cat", "cats", "e", "é", "1", "10"]) == []


def test_names_of_two_datasets_that_look_the_same() -> None:
    assert join_similarity_notes(["cat", "dog"], ["dog", "cat"], "names") == []
    assert join_similarity_notes(["cat", "cat "], ["cat", "cat "], "names") == []
    assert join_similarity_notes(["cat", "cat "], ["dog"], "names") == []
    (note,) = join_similarity_notes(["cat", "dog"], ["cat ", "dog"], "names")
    assert note.startswith("names 'cat' and 'cat ' differ only by white space or Unicode form")


def test_messages_show_names_that_look_the_same_with_repr() -> None:
    assert listed(["cat", "dog"], ["cat "]) == "'cat', dog" and listed(["cat", "dog"]) == "cat, dog"
    assert distinct_names(["é", "e\u0301", "a "]) == [r"'\xe9'", r"'e\u0301'", "'a '"]
    assert distinct_names(["cat, in", "cat , out", "dog, in"]) == ["'cat, in'", "'cat , out'", "dog, in"]
    assert distinct_names(["cat, in", "cat, out"], ["dog, in"]) == ["cat, in", "cat, out"]


@pytest.mark.parametrize("column", ["class_names", "attribute_names"])
def test_group_index_warns_of_similar_names(column: str) -> None:
    values = np.array([0, 1])
    with pytest.warns(UserWarning, match=rf"^{column}: 'cat' and 'cat ' differ only by white space"):
        GroupIndex(values, values, **{column: ("cat", "cat ")})


@pytest.mark.filterwarnings("ignore:class_names")
def test_tables_show_names_that_look_the_same_with_repr() -> None:
    groups = GroupIndex([0, 1, 1], [0, 0, None], class_names=("cat", "cat "), attribute_names=("in", "out"))
    audit = policies.erm().audit(groups)
    assert "'cat'" in str(groups.table()) and "'cat '" in str(groups.table())
    assert "'cat, in'" in str(audit) and "'cat , unknown'" in str(audit)
    assert "in 'cat ' (1 of 2 unknown)" in audit.warnings[0]


def test_long_values_are_shortened_in_messages() -> None:
    long = "x" * 1_000_000
    assert shown(long) == "'" + "x" * 78 + "…"
    assert len(listed([long, "cat", "cat "])) < 120
    for note in (
        *similarity_notes([long, long + " "], "classes"),
        *missing_notes([" " * 500 + "NA"], "classes", "stop"),
    ):
        assert len(note) < 300
