"""The documents describe the current project: paths, definitions, links, commands and code examples are checked."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "bench").glob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
    *sorted((ROOT / ".github").rglob("*.yml")),
]
HISTORY = {"CHANGELOG.md"}
"""Documents that may name files and commands of earlier versions."""

SOURCE_SUFFIXES = (".py", ".cpp", ".h", ".inc", ".cu", ".cuh", ".pyi", ".j2")
NEW_FILES = {
    "spurmix/data/pack/layouts/jsonl.py",
    "tests/data/pack/layouts/test_jsonl.py",
}
"""Files that a how-to page tells the reader to add."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tracked(pattern: str) -> list[Path]:
    """Files and folders of the project that match, without build outputs and environments."""
    return [path for path in ROOT.glob(pattern) if path.relative_to(ROOT).parts[0] not in {"build", "dist"}]


def code_spans(text: str) -> Iterator[str]:
    """Inline code of a Markdown text, without code blocks."""
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def named_paths(text: str) -> Iterator[tuple[str, str]]:
    """Paths of the project in inline code, as (path, definition): `folder/file.py` or `folder/file.py::definition`."""
    top = {path.name for path in ROOT.iterdir()}
    for span in code_spans(text):
        path, _, definition = span.partition("::")
        if path in SOURCE_SUFFIXES or re.fullmatch(r"[\w./*{},-]+", path) is None:
            continue
        in_project = "/" in path and path.split("/")[0] in top
        if in_project or path.endswith(SOURCE_SUFFIXES) or path in top:
            yield path, definition


def defines(path: Path, definition: str) -> bool:
    """Whether a file defines a function, class, method (`Class.method`) or variable."""
    if path.suffix != ".py":
        return re.search(rf"\b{re.escape(definition)}\b", path.read_text()) is not None
    nodes: list[ast.stmt] = ast.parse(path.read_text()).body
    for name in definition.split("."):
        found = None
        for node in nodes:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = {getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)}
            found = node if name in names else found
        if found is None:
            return False
        nodes = getattr(found, "body", [])
    return True


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name not in HISTORY], ids=name_of)
def test_named_paths_exist(document: Path) -> None:
    missing = []
    for path, definition in named_paths(document.read_text()):
        if path in NEW_FILES:
            continue
        expanded = re.sub(r"\{[^}]*\}", "*", path)  # one of several names
        found = tracked(expanded) if "/" in path or (ROOT / path).exists() else tracked(f"**/{expanded}")
        if not found:
            missing.append(path)
        elif definition and not any(defines(file, definition) for file in found):
            missing.append(f"{path}::{definition}")
    assert not missing, f"{name_of(document)} names what does not exist: {missing}"


SCRIPTS = ["Makefile", "tests/sanitize/run.sh", ".ci/run", ".pre-commit-config.yaml", ".github/workflows/docs.yml"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_files_in_scripts_exist(script: str) -> None:
    named = re.findall(r"\b(?:tests|bench|csrc|spurmix)/[\w/.*-]+\.(?:py|cpp|h|sh|txt)\b", (ROOT / script).read_text())
    missing = [path for path in named if "**" not in path and not tracked(path)]
    assert not missing, f"{script} names what does not exist: {missing}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_have_targets(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = document.parent / file if file else document
        assert path.exists(), f"{name_of(document)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{name_of(document)}: {target}"


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name not in HISTORY], ids=name_of)
def test_environment_variables_exist(document: Path) -> None:
    sources = [
        path.read_text() for suffix in ("py", "cpp", "h", "inc") for path in (ROOT / "spurmix").rglob(f"*.{suffix}")
    ]
    sources += [path.read_text() for path in (ROOT / "csrc").rglob("*.*")]
    sources += [(ROOT / "setup.py").read_text(), *(path.read_text() for path in (ROOT / "kernels").rglob("*.py"))]
    everything = "\n".join(sources)
    for variable in set(re.findall(r"\bSPURMIX_[A-Z_]+\b", document.read_text())):
        assert variable in everything, f"{name_of(document)}: {variable} is not used"


OTHER_WORDS = {
    "BuildExtension",
    "Philox4_32",
    "Unreleased",
    "cpp_extension",
    "curand",
    "from_",
    "mod",
    "register_vmap",
    "save_state",
}
"""Words of inline code that are not names of this project."""


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "docs/draw-specification.md"])
def test_named_identifiers_exist(name: str) -> None:
    """Each word of inline code occurs in the source, the tests or the build files."""
    folders = ("spurmix", "kernels", "csrc", "bench", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in SOURCE_SUFFIXES]
    files += [ROOT / other for other in ("setup.py", "pyproject.toml", "Makefile", ".pre-commit-config.yaml")]
    files += [ROOT / "tests" / "sanitize" / "run.sh"]
    known = {word for path in files for word in re.findall(r"[A-Za-z_]\w+", path.read_text())}
    spans = [span for span in code_spans((ROOT / name).read_text()) if "/" not in span and " " not in span]
    words = {word for span in spans for word in re.findall(r"[A-Za-z_]\w+", span)}
    missing = words - known - OTHER_WORDS
    assert not missing, f"{name} names what does not exist: {sorted(missing)}"


def blocks(document: Path, language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def commands(document: Path) -> Iterator[list[str]]:
    """Commands in console blocks, without environment variables and the prefixes that start several processes."""
    for block in blocks(document, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if "-m" in words and words[0] in ("torchrun", "accelerate"):
                words = words[words.index("-m") + 1 :]
            if words:
                yield words


ALL_COMMANDS = [pytest.param(words, id=" ".join(words)[:60]) for d in DOCUMENTS for words in commands(d)]


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_commands_are_valid(words: list[str]) -> None:
    program = words[0].removeprefix(".venv/bin/")
    if program == "spurmix":
        from spurmix.cli.app import app

        group: Any = typer.main.get_command(app)
        group.commands[words[1]].make_context(words[1], words[2:])  # raises an error for unknown options and values
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in (word for word in words[1:] if "=" not in word):
            assert target == ".venv/.ready" or re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    elif program == "python":
        assert words[1] == "-m", "only modules are run"
        if words[2].startswith("bench"):
            assert (ROOT / words[2].replace(".", "/")).exists() or tracked(words[2].replace(".", "/") + ".py")
        for path in (word for word in words[3:] if word.startswith("tests/")):
            assert tracked(path), path
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= set(project["optional-dependencies"])
    else:
        assert program in {"pre-commit", "git", "cd", "addr2line"}, f"unknown program {program}"


class SmallImageModel(torch.nn.Module):
    """Classifies images by their mean color."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.mean((2, 3)))


@pytest.fixture
def example_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Variables that the examples of README.md use."""
    from text_samples import sentences, tokenizer
    from transformers import BertConfig, BertForSequenceClassification

    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    labels = np.arange(96) % 2
    attributes = np.where(np.arange(96) % 8 < 6, labels, 1 - labels)
    words = tokenizer()
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    texts = [text + " w1" for text in sentences(96)]
    return {
        "images": torch.from_numpy(generator.integers(0, 256, (96, 8, 8, 3), dtype=np.uint8)),
        "labels": labels,
        "attributes": attributes,
        "test_images": torch.from_numpy(generator.integers(0, 256, (96, 8, 8, 3), dtype=np.uint8)),
        "test_labels": labels,
        "test_attributes": attributes,
        "model": SmallImageModel(),
        "texts": texts,
        "tokenizer": words,
        "text_model": BertForSequenceClassification(config),
    }


def test_readme_examples_run(example_names: dict[str, Any]) -> None:
    """All Python blocks of README.md run one after another, with the variables that the text introduces."""
    found = blocks(ROOT / "README.md", "python")
    assert len(found) >= 5
    for block in found:
        try:
            exec(compile(block, "README.md", "exec"), example_names)
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}, in\n{block}")


NOT_YET_IN_README: set[str] = set()
"""New commands. Remove a name in the commit that adds the command to README.md."""


def test_readme_is_complete() -> None:
    """README.md names every command, public operator, policy and extra."""
    from spurmix import functional, policies
    from spurmix.cli.app import app

    spans = set(code_spans((ROOT / "README.md").read_text()))
    group: Any = typer.main.get_command(app)
    operators = {name for name in functional.__all__ if name.startswith(("draw", "group", "mix"))} - {"draw_tables"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"]) - {"dev"}
    assert not NOT_YET_IN_README & spans, "remove names that README.md has from NOT_YET_IN_README"
    missing = ((set(group.commands) - NOT_YET_IN_README) | operators | set(policies.__all__) | extras) - spans
    assert not missing, f"README.md lacks {sorted(missing)}"


def test_guide_to_policies() -> None:
    """The code of docs/add-policy.md works if it is added to policies.py."""
    from spurmix import policies

    names = dict(vars(policies))
    for block in blocks(ROOT / "docs" / "add-policy.md", "python"):
        exec(compile(block, "add-policy.md", "exec"), names)
    groups = names["groups"]
    assert names["same_class"]().audit(groups).residual < 1
    assert "same_class" not in policies.__all__


def test_guide_to_dataset_layouts(tmp_path: Path) -> None:
    """The code of docs/add-dataset-layout.md packs a dataset, and its errors name the row."""
    names: dict[str, Any] = {"tmp_path": tmp_path}
    for block in blocks(ROOT / "docs" / "add-dataset-layout.md", "python"):
        exec(compile(block, "add-dataset-layout.md", "exec"), names)
    (tmp_path / "labels.jsonl").write_text('{"file": "0.png", "label": "cat"}')
    with pytest.raises(ValueError, match=r"labels.jsonl, row 0: split is missing"):
        names["from_jsonl"](tmp_path)
    (tmp_path / "labels.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*labels.jsonl"):
        names["from_jsonl"](tmp_path)


def test_guide_to_operators() -> None:
    """The code of docs/add-operator.md registers an operator that passes opcheck."""
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "add-operator.md", "python"):
        exec(compile(block, "add-operator.md", "exec", dont_inherit=True), names)
    library = torch.library.Library("spurmix_guide", "DEF")
    library.define(names["schema"])
    library.impl("weight_rows", names["weight_rows"], "CompositeExplicitAutograd")
    torch.library.register_fake("spurmix_guide::weight_rows", names["fake_weight_rows"], lib=library)
    arguments = torch.randn(6, 4), torch.tensor([0, 5, 2]), torch.rand(3)
    torch.library.opcheck(torch.ops.spurmix_guide.weight_rows.default, arguments)


def deprecated_names() -> Iterator[tuple[str, str, str]]:
    """(file, old name, new name) of every deprecated argument, attribute and setting."""
    for path in sorted((ROOT / "spurmix").rglob("*.py")):
        text = path.read_text()
        if path.name == "deprecation.py":
            continue
        for call in re.findall(r"@renamed_argument\((.*?)\)", text):
            yield from ((name_of(path), old, new) for old, new in re.findall(r'(\w+)="(\w+)"', call))
        for old, new in re.findall(r'(\w+) = renamed_attribute\("(\w+)"\)', text):
            yield name_of(path), old, new


def test_changelog_lists_deprecated_names() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text().replace("\n  ", " ")
    missing = []
    for file, old, new in deprecated_names():
        entry = rf"^- .*`[^`]*\b{old}\b[^`]*`.*`[^`]*\b{new}\b[^`]*`"
        if not re.search(entry, changelog, re.MULTILINE):
            missing.append(f"{file}: {old} -> {new}")
    assert not missing, f"CHANGELOG.md, section Deprecated, lacks {missing}"


def test_citation_names_the_current_version() -> None:
    from spurmix import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
