"""A tokenizer's files: those that travel with packed tokens and exported models, and folders that users have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spurmix.data.dataset.tokenize import special_ids

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"


def load_tokenizer(folder: str | Path, *, alone: bool = False) -> Any:
    """The tokenizer in a folder of this machine: of transformers, or of tokenizers where there is tokenizer.json alone, or
    nothing else is to be read.

    Raises:
        ValueError: for no folder, or one whose tokenizer cannot be read or is no fast one. ImportError: without the
            package.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"tokenizer: there is no folder {place}")
    alone = (place / FILE).is_file() and (alone or not (place / CONFIG).is_file())
    try:
        if alone:
            import tokenizers
        else:
            import transformers
    except ModuleNotFoundError as error:
        raise ImportError(f"tokenizers need the package {error.name!r}: pip install 'spurmix[train]'") from error
    try:
        if alone:
            return tokenizers.Tokenizer.from_file(str(place / FILE))
        found = transformers.AutoTokenizer.from_pretrained(str(place), local_files_only=True)
    except Exception as error:  # both raise plain ones
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"tokenizer: {place} holds none that can be read: {reason}") from None
    backend_of(found)
    return found


def backend_of(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` in a tokenizer.

    Raises:
        TypeError: for one that `tokenizers` cannot run.
    """
    backend = tokenizer if hasattr(tokenizer, "encode_batch") else getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TypeError(f"tokenizer must be a fast one, which `tokenizers` can run, got {type(tokenizer).__name__}")
    return backend


def configure(tokenizer: Any, max_length: int | None, direction: str) -> None:
    """Set a `tokenizers.Tokenizer` to cut texts to `max_length` tokens, on the "left" or "right", and to pad nothing."""
    tokenizer.no_padding()
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length, direction=direction)


def files(tokenizer: Any, max_length: int | None) -> dict[str, str]:
    """The texts of tokenizer.json and tokenizer_config.json, which transformers reads as well.

    Raises:
        TypeError: for one that `tokenizers` cannot run.
    """
    import tokenizers

    direction = str(getattr(tokenizer, "truncation_side", "right"))
    copy = tokenizers.Tokenizer.from_str(backend_of(tokenizer).to_str())
    configure(copy, max_length, direction)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "truncation_side": direction}
    if max_length is not None:
        config["model_max_length"] = max_length
    pad, sep = special_ids(tokenizer)
    others = ("unk", "cls", "mask", "bos", "eos")
    known = {f"{name}_token": getattr(tokenizer, f"{name}_token_id", None) for name in others}
    special = {"pad_token": pad, "sep_token": sep, **known}
    config |= {name: copy.id_to_token(number) for name, number in special.items() if number is not None}
    return {FILE: copy.to_str(pretty=True), CONFIG: json.dumps(config, indent=1)}
