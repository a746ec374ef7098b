"""Tokenizer files: those stored with packed tokens and exported models, and folders that users have."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spurmix.core.files import read_json
from spurmix.core.limits import MAX_TOKENIZER_BYTES
from spurmix.core.model_folders import refuse_code
from spurmix.data.dataset.tokenize import fast_backend, padding_side, special_ids, splits_special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from spurmix.data.dataset.tokenize import TokenizerLike

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_TEXT_SUFFIXES = (".json", ".txt", ".model", ".vocab", ".tiktoken", ".jinja")
"""Suffixes of files that a tokenizer reads."""


def load_tokenizer(folder: str | Path, *, tokenizers_only: bool = False) -> TokenizerLike:
    """Load a tokenizer from a local folder.

    Args:
        folder: Folder that transformers or tokenizers wrote.
        tokenizers_only: Read `tokenizer.json` with tokenizers, even if transformers could read the folder.

    Returns:
        A tokenizer of transformers, or one of tokenizers if there is only `tokenizer.json`.

    Raises:
        ValueError: If the folder does not exist, needs code, or its tokenizer cannot be read.
        TypeError: If the tokenizer is not a fast one.
        ImportError: If the package is missing.
    """
    path = Path(folder)
    if not os.path.isdir(path):
        raise ValueError(f"tokenizer: there is no folder {path}")
    refuse_code(path, "tokenizer")
    for file in path.iterdir():
        if file.suffix in _TEXT_SUFFIXES and file.is_file() and file.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ValueError(
                f"tokenizer: {file} has {file.stat().st_size:,} bytes, the maximum is {MAX_TOKENIZER_BYTES:,}"
            )
    tokenizers_only = (path / TOKENIZER_FILE).is_file() and (
        tokenizers_only or not (path / TOKENIZER_CONFIG_FILE).is_file()
    )
    try:
        if tokenizers_only:
            import tokenizers
        else:
            import transformers
    except ModuleNotFoundError as error:
        raise ImportError(f"tokenizers need the package {error.name!r}: pip install 'spurmix[train]'") from error
    try:
        if tokenizers_only:
            loaded = tokenizers.Tokenizer.from_file(str(path / TOKENIZER_FILE))
            loaded.encode_special_tokens = _splits_special_tokens(path / TOKENIZER_CONFIG_FILE)
            return loaded
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # both libraries raise plain exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"tokenizer: no tokenizer can be read from {path}: {reason}") from None
    require_fast(tokenizer)
    return tokenizer


def _splits_special_tokens(config: Path) -> bool:
    """Read from `tokenizer_config.json` what `tokenizer.json` does not contain."""
    return config.is_file() and read_json(config, dict[str, object]).get("split_special_tokens") is True


def require_fast(tokenizer: TokenizerLike) -> Tokenizer:
    """Return the `tokenizers.Tokenizer` behind a tokenizer.

    Raises `TypeError` if there is none, because the tokenizer is written in Python.
    """
    is_fast = hasattr(tokenizer, "encode_batch") or hasattr(tokenizer, "backend_tokenizer")
    backend = fast_backend(tokenizer) if is_fast else None
    if backend is None:
        raise TypeError(f"tokenizer must be a fast tokenizer, got {type(tokenizer).__name__}")
    return backend


def set_truncation(tokenizer: Tokenizer, max_length: int | None, direction: str) -> None:
    """Set a tokenizer to truncate texts to `max_length` tokens, on the "left" or "right", and not to pad."""
    tokenizer.no_padding()
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length, direction=direction)


def tokenizer_files(tokenizer: TokenizerLike, max_length: int | None) -> dict[str, str]:
    """Return the contents of `tokenizer.json` and `tokenizer_config.json`, which transformers can also read.

    Args:
        tokenizer: A fast tokenizer.
        max_length: Maximum number of tokens of a text. None means no limit.

    Returns:
        Text of each file, by file name.

    Raises:
        TypeError: If the tokenizer is not a fast one.
    """
    import tokenizers

    direction = str(getattr(tokenizer, "truncation_side", "right"))
    copy = tokenizers.Tokenizer.from_str(require_fast(tokenizer).to_str())
    set_truncation(copy, max_length, direction)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "truncation_side": direction}
    if padding_side(tokenizer) == "left":
        config["padding_side"] = "left"
    if splits_special_tokens(tokenizer):
        config["split_special_tokens"] = True
    if max_length is not None:
        config["model_max_length"] = max_length
    pad, sep = special_ids(tokenizer)
    roles = ("unk", "cls", "mask", "bos", "eos")
    special_tokens = {"pad_token": pad, "sep_token": sep}
    special_tokens |= {f"{role}_token": getattr(tokenizer, f"{role}_token_id", None) for role in roles}
    config |= {name: copy.id_to_token(number) for name, number in special_tokens.items() if number is not None}
    return {TOKENIZER_FILE: copy.to_str(pretty=True), TOKENIZER_CONFIG_FILE: json.dumps(config, indent=1)}
