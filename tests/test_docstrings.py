"""The docstring of every public name documents its arguments, result and errors, and has an example that parses."""

from __future__ import annotations

import ast
import doctest
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import ModuleType

import pytest
from docstring_parser.common import DocstringParam, ParseError
from docstring_parser.google import parse

import spurmix


def public_objects() -> Iterator[tuple[str, object]]:
    """Names and values of the public API: `spurmix.__all__`, and the functions of its public modules."""
    for name in spurmix.__all__:
        value = getattr(spurmix, name)
        if isinstance(value, str):
            continue
        yield name, value
        if isinstance(value, ModuleType):
            for function_name, function in public_functions(value):
                yield f"{name}.{function_name}", function


def public_functions(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Functions in a module's `__all__`."""
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield name, value


PUBLIC = dict(public_objects())

OUTSTANDING: set[str] = set()
"""Names whose docstrings are incomplete. Remove a name in the commit that completes its docstring."""


def callable_of(value: object) -> object:
    """The function whose parameters and `raise` statements are documented: the constructor of a class."""
    return value.__init__ if inspect.isclass(value) else value  # type: ignore[misc]


def parameter_names(value: object) -> list[str]:
    """Names of the parameters, without `self`. Deprecated names are not part of the signature."""
    return list(inspect.signature(value).parameters)  # type: ignore[arg-type]


def raises_errors(value: object) -> bool:
    """Whether the body contains a `raise` statement outside nested functions."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(callable_of(value))))  # type: ignore[arg-type]
    except (OSError, TypeError):
        return False  # a generated constructor, as of a dataclass
    nodes = list(ast.parse(source).body[0].body)  # type: ignore[attr-defined]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Raise):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            nodes.extend(ast.iter_child_nodes(node))
    return False


def returns_value(value: object) -> bool:
    if inspect.isclass(value):
        return False
    annotation = inspect.signature(value).return_annotation  # type: ignore[arg-type]
    return annotation not in (None, "None", inspect.Signature.empty)


def example_error(text: str) -> str | None:
    """Why an example does not parse, or None. Examples are doctests or plain code."""
    examples = doctest.DocTestParser().get_examples(text)
    code = "".join(example.source for example in examples) if examples else textwrap.dedent(text)
    try:
        ast.parse(code)
    except SyntaxError as error:
        return f"Example does not parse: {error}"
    return None


def incomplete(name: str, value: object) -> list[str]:
    """What a docstring lacks."""
    text = inspect.getdoc(value) or ""
    if not text:
        return ["no docstring"]
    if isinstance(value, ModuleType):
        return []
    found = []
    try:
        parsed = parse(text)
    except ParseError as error:
        return [f"not Google style: {error}"]
    sections = {"param"} if not is_dataclass(value) else {"param", "attribute"}
    described = [entry.args[1].split()[0].lstrip("*") for entry in parsed.meta if entry.args[0] in sections]
    expected = parameter_names(value)
    kinds = [parameter.kind for parameter in inspect.signature(value).parameters.values()]  # type: ignore[arg-type]
    takes_keywords = inspect.Parameter.VAR_KEYWORD in kinds
    if described != expected:
        missing = [entry for entry in expected if entry not in described]
        extra = [] if takes_keywords else [entry for entry in described if entry not in expected]
        if missing or extra:
            found.append(f"Args: missing {missing}, unknown {extra}")
    empty = [e.arg_name for e in parsed.params if isinstance(e, DocstringParam) and not (e.description or "").strip()]
    if empty:
        found.append(f"Args without a description: {empty}")
    if returns_value(value) and parsed.returns is None:
        found.append("no Returns")
    if raises_errors(value) and not parsed.raises:
        found.append("no Raises")
    if not parsed.examples:
        found.append("no Example")
    for example in parsed.examples:
        error = example_error("\n".join(filter(None, (example.snippet, example.description))))
        if error:
            found.append(error)
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_is_complete(name: str) -> None:
    found = incomplete(name, PUBLIC[name])
    if name in OUTSTANDING and found:
        pytest.xfail("; ".join(found))
    assert not found, f"{name}: " + "; ".join(found)


def test_outstanding_names_exist() -> None:
    assert not OUTSTANDING - set(PUBLIC)


if __name__ == "__main__":
    for name, value in PUBLIC.items():
        found = incomplete(name, value)
        if found:
            print(f"{name}: {'; '.join(found)}")
