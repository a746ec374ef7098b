"""Folders of models and tokenizers that need code are refused, and their code does not run."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from spurmix.core.model_folders import refuse_code
from spurmix.data.dataset.tokenizer_files import load_tokenizer
from spurmix.train import models
from spurmix.train.runs.model import rebuild

ROOT = Path(__file__).resolve().parents[2]
CODE = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Tokenizer", None]}


def hostile(folder: Path, model_type: str, **entries: object) -> Path:
    """A folder whose Python code creates a file when it is imported."""
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **entries}))
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("model_type", ["bert", "unknown"])
@pytest.mark.parametrize("entries", [{"auto_map": CODE}, {"attn_implementation": "someone/kernel"}])
def test_folders_that_need_code_are_refused_by_name(
    model_type: str, entries: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: object) -> str:
        raise AssertionError("transformers asks whether to run code")

    monkeypatch.setattr("builtins.input", answer)
    folder = hostile(tmp_path / "m", model_type, **entries)
    for load in (
        lambda: models.bert(2, pretrained=folder),
        lambda: models.text_classifier(2, pretrained=folder),
        lambda: load_tokenizer(folder),
    ):
        with pytest.raises(ValueError, match=rf"{folder} needs code to load it \({next(iter(entries))} in .*config"):
            load()
    assert not (folder / "ran").exists()


def test_other_folders_pass_and_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "auto_map": null, "attn_implementation": "sdpa"}')
    (tmp_path / "data_config.json").write_text("[]")  # as in sentence-transformers
    refuse_code(tmp_path, "pretrained")
    (tmp_path / "config.json").write_text("[" * 5000)
    with pytest.raises(ValueError, match=r"pretrained: .*config\.json is damaged"):
        refuse_code(tmp_path, "pretrained")


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"text_config": {"auto_map": CODE}}, "auto_map"),
        ({"parts": [1, [{"vision_config": {"auto_map": CODE}}]]}, "auto_map"),
        ({"_attn_implementation_internal": "x/y"}, "_attn_implementation_internal"),
        ({"text_config": {"attn_implementation": {"": "x/y"}}}, "attn_implementation"),
        ({"experts_implementation": "x/y:f"}, "experts_implementation"),
    ],
)
def test_nested_keys_that_name_code_are_refused(content: object, key: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"needs code to load it \({key} in config\.json\)"):
        refuse_code(tmp_path, "pretrained")


@pytest.mark.parametrize("value", ["unheard-of", 3, None])
def test_unknown_architectures_are_named(value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": value}))
    with pytest.raises(ValueError, match=rf"pretrained: {tmp_path} .*model_type {value!r}") as caught:
        models.text_classifier(2, pretrained=tmp_path)
    assert len(str(caught.value)) < 300


def test_architectures_of_runs_run_no_code(tmp_path: Path) -> None:
    described: dict[str, Any] = {
        "model": "encoder", "mix_at": "embeddings", "head": 2,
        "config": {
            "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 30,
            "auto_map": {"AutoModel": f"{tmp_path}--code.Model"},
        },
    }  # fmt: skip
    assert type(rebuild(described).model.encoder).__name__ == "BertModel"  # type: ignore[union-attr]


FORBIDDEN = {
    "from_pretrained": ("trust_remote_code", "False"),
    "from_config": ("trust_remote_code", "False"),
    "load_dataset": ("trust_remote_code", "False"),
    "load_dataset_builder": ("trust_remote_code", "False"),
    "pipeline": ("trust_remote_code", "False"),
    "SentenceTransformer": ("trust_remote_code", "False"),
    "CrossEncoder": ("trust_remote_code", "False"),
    "torch.load": ("weights_only", "True"),
    "np.load": ("allow_pickle", "False"),
    "numpy.load": ("allow_pickle", "False"),
}
"""Functions that can run code from files, and the argument that forbids it."""


def calls_that_may_run_code(source: str) -> list[str]:
    """Return the calls of functions in `FORBIDDEN` without the argument that forbids code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {one.arg: ast.unparse(one.value) for one in node.keywords}
        for name, (option, value) in FORBIDDEN.items():
            if f".{called}".endswith(f".{name}") and options.get(option) != value:
                found.append(f"line {node.lineno}: {called} needs {option}={value}")
    return found


def test_every_call_forbids_code() -> None:
    for folder in ("spurmix", "bench"):
        for file in (ROOT / folder).rglob("*.py"):
            assert calls_that_may_run_code(file.read_text()) == [], file


def test_every_call_in_the_documents_forbids_code() -> None:
    for file in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```python\n(.*?)```", file.read_text(), flags=re.DOTALL):
            assert calls_that_may_run_code(block) == [], file


@pytest.mark.parametrize(
    "source",
    ["AutoModel.from_pretrained(x)", "load_dataset(x, trust_remote_code=ask)", "torch.load(x)", "np.load(x, 'r')"],
)
def test_calls_that_may_run_code_are_found(source: str) -> None:
    assert len(calls_that_may_run_code(source)) == 1
