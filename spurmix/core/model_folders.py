"""Folders of pre-trained models and tokenizers: one that needs Python code is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from spurmix.core.files import FileError, read_json
from spurmix.core.limits import MAX_TOKENIZER_BYTES

_CODE_KEYS = ("auto_map", "custom_pipelines")
"""Keys of configuration files that name Python code of the folder or of another one."""


def refuse_code(folder: Path, name: str) -> None:
    """Check that a folder of transformers needs no code. Only its configuration files are read.

    Args:
        folder: The folder.
        name: Name of the argument, for errors.

    Raises:
        ValueError: If a configuration file names code. The message names the file and the key.
    """
    for file in sorted(folder.glob("*.json")):
        # Weight indexes, vocabularies and tokenizers have other names and may be large.
        if not file.name.endswith("config.json") or file.stat().st_size > MAX_TOKENIZER_BYTES:
            continue
        try:
            content = read_json(file, object)
        except FileError as error:
            raise ValueError(f"{name}: {error}") from None
        key = _code_key(content)
        if key is not None:
            raise ValueError(
                f"{name}: {folder} needs code to load it ({key} in {file.name}), and spurmix never runs code of model "
                f"folders; use an architecture that transformers contains, and remove {key} from {file.name}"
            )


def _names_attention(key: str) -> bool:
    """Whether a key names an implementation of attention, such as "_attn_implementation_internal"."""
    return "implementation" in key or "kernel" in key


def _code_key(content: object) -> str | None:
    """Return the first key, at any depth, that names code. Models of several parts have nested configurations."""
    if isinstance(content, list):
        return next((key for item in content if (key := _code_key(item)) is not None), None)
    for key, value in content.items() if isinstance(content, dict) else ():
        # An attention implementation "owner/name" is a repository with compiled kernels.
        if (key in _CODE_KEYS and value) or (_names_attention(key) and "/" in str(value)):
            return key
        nested = _code_key(value)
        if nested is not None:
            return nested
    return None
