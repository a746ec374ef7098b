"""The tokenizer of an exported text model: checked against texts and model, and written next to the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from spurmix.core.temporary import temporary_file
from spurmix.data.dataset import tokenize
from spurmix.data.dataset.tokenizer_files import TOKENIZER_FILE, require_fast, tokenizer_files
from spurmix.data.sources.tokens import TokenSource
from spurmix.deploy.export.errors import ExportError
from spurmix.deploy.predictor import Predictor
from spurmix.deploy.tokenizer import TextInput, TextSettings

if TYPE_CHECKING:
    from spurmix.data.dataset.tokenize import TokenizerLike

SAMPLE_TEXTS = (
    "",
    "Hello, world!",
    "naïve café, Straße",
    "你好 😀 e\u0301",
    "a\tb\n c",
    " ".join(map(str, range(3000))),
)
"""Texts for which the stored tokenizer must give the same ids as the original one."""


class ExportedTokenizer:
    """The tokenizer files of an exported model.

    Args:
        tokenizer: Fast tokenizer that made the ids of `source`.
        source: Held-out texts.
        model: The model.
        target: Path of the exported file.

    Attributes:
        settings: Settings that the exported file stores.

    Raises:
        TypeError: If the tokenizer is not a fast one.
        ValueError: If the tokenizer is missing or does not match texts and model, or the folder has another tokenizer.
        ExportError: If the stored tokenizer gives other ids.
    """

    def __init__(self, tokenizer: TokenizerLike | None, source: TokenSource, model: nn.Module, target: Path) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer is required for texts; pass the tokenizer that made the ids")
        require_fast(tokenizer)
        source.check_tokenizer(tokenizer)
        source.check_model(model)
        size = _checked_vocabulary_size(tokenizer, source, model)
        _check_special_tokens(tokenizer, source)
        limit = source.max_length if source.max_length is not None else tokenize.model_max_length(tokenizer)
        self.settings: TextSettings = {
            "fingerprint": tokenize.tokenizer_fingerprint(tokenizer),
            "max_length": limit,
            "direction": str(getattr(tokenizer, "truncation_side", "right")),
            "pad_id": source.pad_id,
            "vocab_size": size,
        }
        if source.padding_side == "left":
            self.settings["padding_side"] = "left"
        if tokenize.splits_special_tokens(tokenizer):
            self.settings["split_special_tokens"] = True
        self._folder = target.parent
        self._files = tokenizer_files(tokenizer, limit)
        if target.name in self._files:
            raise ValueError(f"path must not be {target.name}, which is the name of a file of the tokenizer")
        self._keep_existing = self._check_existing(target)
        self._check_stored_ids(tokenizer, limit)

    def _check_existing(self, target: Path) -> bool:
        """Return whether the folder already has the same tokenizer. Another tokenizer is an error."""
        existing = self._folder / TOKENIZER_FILE
        others = [p.name for p in self._folder.glob("*.onnx") if p.name != target.name and not p.name.startswith(".")]
        replaces_export = target.exists() and not others  # the tokenizer belongs to the model that is replaced
        if not existing.is_file() or replaces_export:
            return False
        try:
            TextInput(existing, self.settings)
        except ValueError:
            users = f", which {', '.join(sorted(others))} may need" if others else ""
            raise ValueError(f"path: {existing} is another tokenizer{users}; export to another folder") from None
        return True

    def _open(self) -> TextInput:
        """Open the tokenizer as the predictor opens the file, which is not written yet."""
        return TextInput(self._folder / TOKENIZER_FILE, self.settings, self._files[TOKENIZER_FILE])

    def _check_stored_ids(self, tokenizer: TokenizerLike, limit: int | None) -> None:
        """Check that the stored file gives the same ids as the tokenizer."""
        stored = self._open()
        added = [token.content for token in stored.tokenizer.get_added_tokens_decoder().values()]
        texts = [*SAMPLE_TEXTS, *(f"Hello {token}, {token}{token} world" for token in added[:1000])]
        ids, offsets = tokenize.encode(texts, tokenizer, limit, progress=False)
        for n, row in enumerate(stored.encode(texts)):
            if row != ids[offsets[n] : offsets[n + 1]].tolist():
                raise ExportError(
                    f"tokenizer: the stored tokenizer gives other ids than the original for {texts[n][:40]!r}; "
                    "the file was not written"
                )

    def open_predictor(self, model: Path) -> Predictor:
        """Open `model` with the tokenizer, while neither has its final name."""
        opened = self._open()

        class PredictorOfTemporaryFile(Predictor):
            def _open_tokenizer(self, settings: TextSettings) -> TextInput:
                return opened

        return PredictorOfTemporaryFile(model)

    def write(self) -> None:
        """Write the files next to the model, each by rename. Existing files of the same tokenizer are kept."""
        if self._keep_existing:
            return
        for name, text in self._files.items():
            with temporary_file(self._folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(self._folder / name)


def _checked_vocabulary_size(tokenizer: TokenizerLike, source: TokenSource, model: nn.Module) -> int:
    size = tokenize.vocabulary_size(tokenizer)
    # nn.Module declares every attribute as a tensor or module, which mypy does not let us call.
    rows: int = getattr(model, "get_input_embeddings")().weight.shape[0]  # noqa: B009
    if not source.vocab_size <= size <= rows:
        raise ValueError(
            f"tokenizer has {size:,} tokens, the ids go up to {source.vocab_size - 1:,} and the model's embedding table "
            f"has {rows:,} rows; pass the tokenizer that made the ids"
        )
    return size


def _check_special_tokens(tokenizer: TokenizerLike, source: TokenSource) -> None:
    pad, sep = tokenize.special_ids(tokenizer)
    for name, found, expected in (("padding", pad, source.pad_id), ("closing", sep, source.sep_id)):
        if expected is not None and found != expected:
            raise ValueError(
                f"tokenizer: its {name} token is {found}, that of the ids is {expected}; pass the tokenizer that made "
                "the ids"
            )
