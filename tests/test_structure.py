"""The structure of the source: one-way imports, sizes of files and functions, unique class names, plain English.

`python tests/test_structure.py [PATH]` prints everything that breaks a rule, optionally below PATH only.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"spurmix": ROOT / "spurmix", "spurmix.kernels": ROOT / "kernels" / "triton", "bench": ROOT / "bench"}

LAYERS = [
    "spurmix._version",
    "spurmix._build_stamp",
    "spurmix.core",
    "spurmix.ops",
    "spurmix.kernels",
    "spurmix.data.batch",
    "spurmix.data.memory",
    "spurmix.data.dataset",
    "spurmix.data.sources",
    "spurmix.data.pack",
    "spurmix.data.loader",
    "spurmix.train",
    "spurmix.deploy",
    "spurmix.cli",
    "bench",
]
"""Packages from the lowest to the highest: each imports only from itself and from those above it in this list."""

LAYER_EXCEPTIONS = {
    # Triton registers itself on first use, so that importing the operators does not import Triton.
    ("spurmix.ops.library", "spurmix.kernels.launch"),
    ("spurmix.ops.library", "spurmix.kernels.launch_embeddings"),
    # `PackedDataset.source()` opens a source; sources know the format, but not `PackedDataset`.
    ("spurmix.data.dataset.packed", "spurmix.data.sources.open"),
}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_ARGUMENTS = 12
LONG_FUNCTIONS: set[tuple[str, str]] = {
    ("spurmix.data.loader.mix_loader", "__init__"),  # a public option list, as of PyTorch's DataLoader
    ("spurmix.deploy.export.onnx_export", "export_onnx"),  # a public option list, as of torch.onnx.export
    # typer: one argument for each option of the command
    ("spurmix.cli.pack", "pack"),
    ("spurmix.cli.retrain_head", "retrain_head"),
    # Operators: one argument for each argument of the schema.
    ("spurmix.ops.functional.embeddings", "mix_bert_embeddings"),
    ("spurmix.ops.functional.images", "mix_images"),
    ("spurmix.ops.functional.images", "mix_image_batch"),
    ("spurmix.ops.reference.mix_images", "mix_image_batch"),
    ("spurmix.ops.reference.embeddings", "mix_bert_embeddings"),
    ("spurmix.ops.reference.embeddings", "mix_bert_embeddings_backward"),
    ("spurmix.kernels.launch", "mix_image_batch_out"),
}
"""(module, function) that may exceed the limits; Triton kernels always may."""


def module_files() -> dict[str, Path]:
    """Every module's name and file."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            if package == "spurmix" and "kernels" in path.relative_to(folder).parts[:1]:
                continue
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))
            found[name] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Modules of this project that a file imports anywhere: also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: relative import"
            candidates = [
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in modules else node.module
                for alias in node.names
            ]
        else:
            continue
        yield from (candidate for candidate in candidates if candidate in modules and candidate != name)


def graph() -> dict[str, set[str]]:
    """Imports between files. The package `spurmix` itself re-exports lazily, so it is left out."""
    modules = module_files()
    return {
        name: {other for other in imports_of(name, path, modules) if other != "spurmix"}
        for name, path in modules.items()
        if name != "spurmix"
    }


def circles() -> list[list[str]]:
    """Strongly connected components of more than one file."""
    edges, index, low, stack, found = graph(), {}, {}, [], []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            members = []
            while not members or members[-1] != name:
                members.append(stack.pop())
            if len(members) > 1:
                found.append(sorted(members))

    for name in edges:
        if name not in index:
            visit(name)
    return found


def layer_of(name: str) -> int | None:
    """The position of a module's package in LAYERS, or None for top-level files such as `spurmix.__main__`."""
    matches = [(len(layer), at) for at, layer in enumerate(LAYERS) if name == layer or name.startswith(layer + ".")]
    return max(matches)[1] if matches else None


def upward_imports() -> list[str]:
    found = []
    for name, others in graph().items():
        own = layer_of(name)
        for other in sorted(others):
            target = layer_of(other)
            if own is None or target is None or target <= own or (name, other) in LAYER_EXCEPTIONS:
                continue
            found.append(f"{name} imports {other}")
    return found


def all_files() -> list[Path]:
    """Source and test files that the size limit is for."""
    suffixes = {".py", ".cpp", ".h", ".cu", ".cuh", ".inc"}
    folders = ("spurmix", "kernels", "csrc", "bench", "tests", "examples")
    links = (ROOT / "spurmix" / "kernels",)
    return [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in suffixes and not any(path.is_relative_to(link) for link in links)
    ]


def long_files() -> list[str]:
    lengths = {path: len(path.read_text().splitlines()) for path in all_files()}
    return [f"{path.relative_to(ROOT)}: {count} lines" for path, count in lengths.items() if count > MAX_FILE_LINES]


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body, without the signature and the docstring."""
    body = node.body
    if ast.get_docstring(node) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("triton" in ast.unparse(decorator) for decorator in node.decorator_list)


def long_functions() -> list[str]:
    found = []
    for name, path in module_files().items():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_kernel(node):
                continue
            arguments = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
            if (name, node.name) in LONG_FUNCTIONS:
                continue
            if code_lines(node) > MAX_FUNCTION_LINES:
                found.append(f"{name}.{node.name}: {code_lines(node)} lines")
            if arguments > MAX_ARGUMENTS:
                found.append(f"{name}.{node.name}: {arguments} arguments")
    return found


def shared_class_names() -> list[str]:
    """Public class names that two modules define."""
    places = defaultdict(list)
    for name, path in module_files().items():
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(name)
    return [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1]


BANNED_PHRASES = (
    "as ever",
    "has no say",
    "is told",
    "told once",
    "whoever",
    "gone on with",
    "broken off",
    "what is to be",
    "its kin",
    "all the same",
    "for ever",
    "is had",
    "no more than that",
    "beyond that",
    "so that none",
    "kept from",
    "otherwise than",
    "at rest",
    "of theirs",
    "shall",
    "lest",
    "hence",
    "thus",
    "at hand",
    "stands in",
    "stands",
    "goes on",
    "lies",
    "told",
    "is gone",
    "passed over",
    "likewise",
    "what has",
    "somebody",
    "kept for",
    "is wanted",
    "by itself",
    "made of",
    "as yet",
    "anew",
)
"""Old-fashioned phrases. CONTRIBUTING.md, section "Style", says how to write instead."""


def documents() -> list[Path]:
    """Texts outside the source files."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "Makefile", ROOT / "setup.py"]


def banned_phrases() -> list[str]:
    """Sentences with a banned phrase, also where a line break or comment sign splits it."""
    phrases = "|".join(phrase.replace(" ", r"[\s#/*]+") for phrase in BANNED_PHRASES)
    pattern = re.compile(rf"\b(?:{phrases})\b", re.IGNORECASE)
    found = []
    for path in [*all_files(), *documents()]:
        name = str(path.relative_to(ROOT))
        if path == Path(__file__).resolve():
            continue
        text = path.read_text()
        found += [f"{name}:{text.count(chr(10), 0, m.start()) + 1}: {m.group()!r}" for m in pattern.finditer(text)]
    return found


MAX_ANY = 58


def any_count() -> int:
    """How often signatures of functions use `Any`."""
    count = 0
    for name, path in module_files().items():
        if not name.startswith("spurmix"):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                given = [a.annotation for a in (*arguments, node.args.vararg, node.args.kwarg) if a is not None]
                for annotation in (*given, node.returns):
                    if annotation is not None:
                        count += sum(isinstance(n, ast.Name) and n.id == "Any" for n in ast.walk(annotation))
    return count


OUTSTANDING = {}
"""What still breaks a rule. An entry leaves this list when it is fixed; nothing is added to it."""

CHECKS = {
    "circles of imports": circles,
    "imports of a higher layer": upward_imports,
    "long files": long_files,
    "long functions": long_functions,
    "classes that share a name": shared_class_names,
    "old-fashioned phrases": banned_phrases,
}


@pytest.mark.parametrize("what", CHECKS)
def test_structure(what: str) -> None:
    outstanding = OUTSTANDING.get(what, set())
    found = {str(line): str(line).split(": ")[0] for line in CHECKS[what]()}
    new = [line for line, name in found.items() if name not in outstanding]
    assert not new, f"{what}:\n" + "\n".join(new)
    fixed = outstanding - set(found.values())
    assert not fixed, f"fixed, so remove from OUTSTANDING: {fixed}"


def test_signatures_use_real_types() -> None:
    """Use real types, imports under TYPE_CHECKING, Protocols, `object` or ParamSpec. Lower the limit as it falls."""
    assert any_count() <= MAX_ANY


if __name__ == "__main__":
    below = sys.argv[1] if len(sys.argv) > 1 else ""
    for what, check in CHECKS.items():
        lines = [str(line) for line in check() if below in str(line).replace("/", ".")]
        print(f"{what}: {len(lines)}", *lines, sep="\n  ")
    print("Any in signatures:", any_count())


def test_files_of_tests_have_different_names() -> None:
    """Pytest imports test files by their name without the folder."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert not [name for name in set(names) if names.count(name) > 1]
