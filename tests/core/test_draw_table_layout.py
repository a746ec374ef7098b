"""`csrc/draw.h` and the Triton kernels use the layout that `core/table_layout.py` defines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spurmix.core import table_layout as layout

ROOT = Path(__file__).resolve().parents[2]
HEADER = (ROOT / "csrc" / "draw.h").read_text()
NAMES = [
    name
    for name, value in vars(layout).items()
    if name.isupper() and isinstance(value, int) and name not in ("POINTS", "ROW_SLICES")
]
"""Constants of the layout: WORD_LENGTH in Python is kWordLength in C++."""


def cpp_name(name: str) -> str:
    return "k" + "".join(part.capitalize() for part in name.split("_"))


def constants(source: str) -> dict[str, int]:
    """Integer constants of a C++ header by name."""
    return {n: int(v, 0) for n, v in re.findall(r"constexpr int64_t (\w+) = (0x[0-9A-Fa-f]+|\d+);", source)}


def section_sizes(source: str) -> list[str]:
    """Expressions of the sections' sizes, in order."""
    body = re.search(r"sizes\[9\] = \{([^}]*)\}", source)
    assert body is not None, "draw.h no longer lists the sizes of the sections"
    return [entry.strip() for entry in body.group(1).split(",")]


@pytest.mark.parametrize("name", NAMES)
def test_constants_of_the_header_file(name: str) -> None:
    assert constants(HEADER)[cpp_name(name)] == getattr(layout, name)


def test_header_file_has_no_other_constants() -> None:
    assert constants(HEADER).keys() == {cpp_name(name) for name in NAMES}


def test_sections() -> None:
    counts = {"g": 3, "s": 2, "w": 5, "r": 4, "l": 7, "kRowWords": layout.ROW_WORDS, "kQuantiles": layout.QUANTILES}
    sizes = [eval(size, {}, counts) for size in section_sizes(HEADER)]
    assert tuple(sizes) == layout.section_sizes(num_groups=3, num_strata=2, period=5, num_rows=4, list_words=7)
    view = re.search(r"const int64_t ((?:\*\w+, )+\*\w+);", HEADER)
    assert view is not None, "draw.h no longer declares the sections as one list"
    assert tuple(view.group(1).replace("*", "").split(", ")) == layout.SECTIONS


def test_triton_constants() -> None:
    draw = pytest.importorskip("spurmix.kernels.draw")
    checked = [name for name in NAMES if hasattr(draw, name)]
    assert {"MAGIC", "HEADER_WORDS", "WORD_FLAGS", "FLAG_REPLACEMENT", "QUANTILES", "MAX_COUNT"} <= set(checked)
    for name in checked:
        assert getattr(draw, name).value == getattr(layout, name), name


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("kWordFlags = 7", "kWordFlags = 6"),
        ("kFlagKeepLabels = 2", "kFlagKeepLabels = 4"),
        ("{w, s, s, s,", "{w, s, g, s,"),
    ],
)
def test_a_change_of_the_header_file_is_found(text: str, changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text in HEADER
    monkeypatch.setitem(globals(), "HEADER", HEADER.replace(text, changed))
    with pytest.raises(AssertionError):
        for name in NAMES:
            test_constants_of_the_header_file(name)
        test_sections()
