"""`csrc/draw.h` and the Triton kernels use the layout that `core/table_layout.py` defines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spurmix.core import table_layout as layout

ROOT = Path(__file__).resolve().parents[2]
HEADER = (ROOT / "csrc" / "draw.h").read_text()


def constants(source: str) -> dict[str, int]:
    """Integer constants of a C++ header by name, from `constexpr` declarations and `enum` bodies with values."""
    source = re.sub(r"//[^\n]*", "", source)
    declarations = re.findall(r"constexpr\s+\w+\s+([^;]+);", source) + re.findall(r"enum\b[^{]*\{([^}]*)\}", source)
    pairs = re.findall(r"(\w+)\s*=\s*(0x[0-9A-Fa-f]+|\d+)\b", ",".join(declarations))
    return {name: int(value, 0) for name, value in pairs}


def header_words(source: str) -> dict[str, int]:
    """Number of the header word that `view_tables` reads for each count."""
    return {name: int(word) for name, word in re.findall(r"\b([ngswr]) = header\[(\d+)\]", source)}


def section_sizes(source: str) -> list[str]:
    """Expressions of the sections' sizes, in order."""
    body = re.search(r"sizes\[8\] = \{([^}]*)\}", source)
    assert body is not None, "draw.h no longer lists the sizes of the sections"
    return [entry.strip() for entry in body.group(1).split(",")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kTablesMagic", layout.MAGIC),
        ("kHeader", layout.HEADER_WORDS),
        ("kQuantiles", layout.QUANTILES),
        ("kReplacement", layout.FLAG_REPLACEMENT),
        ("kKeepLabels", layout.FLAG_KEEP_LABELS),
    ],
)
def test_constants_of_the_header_file(name: str, value: int) -> None:
    assert constants(HEADER)[name] == value


def test_words_of_the_header() -> None:
    assert header_words(HEADER) == {
        "n": layout.WORD_NUM_EXAMPLES,
        "g": layout.WORD_NUM_GROUPS,
        "s": layout.WORD_NUM_STRATA,
        "w": layout.WORD_PERIOD,
        "r": layout.WORD_NUM_ROWS,
    }
    assert f"header[{layout.WORD_MAGIC}] != kTablesMagic" in HEADER
    assert f"header[{layout.WORD_LENGTH}] != length" in HEADER
    assert f"header[{layout.WORD_STARTS} + k]" in HEADER
    assert f"header[{layout.WORD_FLAGS}]" in HEADER
    assert f"int64_t{{1}} << {layout.MAX_COUNT.bit_length() - 1}" in HEADER


def test_sections() -> None:
    counts = {"g": 3, "s": 2, "w": 5, "r": 4, "kQuantiles": layout.QUANTILES}
    sizes = [eval(size, {}, counts) for size in section_sizes(HEADER)]
    assert tuple(sizes) == layout.section_sizes(num_groups=3, num_strata=2, period=5, num_rows=4)
    view = re.search(r"const int64_t ((?:\*\w+(?:, )?)+);\s*const int32_t", HEADER)
    assert view is not None, "draw.h no longer declares the sections as one list"
    assert tuple(view.group(1).replace("*", "").split(", ")) == layout.SECTIONS


def test_triton_constants() -> None:
    draw = pytest.importorskip("spurmix.kernels.draw")
    names = {name for name in vars(layout) if name.isupper() and hasattr(draw, name)}
    assert names >= {"MAGIC", "HEADER_WORDS", "WORD_LENGTH", "WORD_FLAGS", "FLAG_REPLACEMENT", "MAX_COUNT", "QUANTILES"}
    for name in names:
        assert getattr(draw, name).value == getattr(layout, name), name


@pytest.mark.parametrize(
    ("text", "changed"),
    [("header[7]", "header[6]"), ("kKeepLabels = 2", "kKeepLabels = 4"), ("{w, s, s, s,", "{w, s, g, s,")],
)
def test_a_change_of_the_header_file_is_found(text: str, changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text in HEADER
    monkeypatch.setitem(globals(), "HEADER", HEADER.replace(text, changed))
    with pytest.raises(AssertionError):
        test_constants_of_the_header_file("kKeepLabels", layout.FLAG_KEEP_LABELS)
        test_words_of_the_header()
        test_sections()
