"""The tokenizer of an exported text model: checked against texts and model, written beside the file, proven."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from spurmix.data.dataset import tokenize as tokenise
from spurmix.data.dataset.tokenizer_files import TOKENIZER_FILE, require_fast, tokenizer_files
from spurmix.data.sources.tokens import TokenSource
from spurmix.deploy.predictor import Predictor
from spurmix.deploy.tokenizer import TextInput

PROBES = ("", "Hello, world!", "naïve café, Straße", "你好 😀 e\u0301", "a\tb\n c", " ".join(map(str, range(3000))))


class ExportError(RuntimeError):
    """The exported file does not do what the model does; no file was left."""


class StoredTokenizer:
    """What is stored of a tokenizer, after checks that it is the one of the texts and of the model.

    Attributes:
        settings: what the model's file says about it.

    Raises:
        TypeError: for one that `tokenizers` cannot run. ValueError: for one of another model.
    """

    def __init__(self, tokenizer: Any, source: TokenSource, model: nn.Module, target: Path) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer: a text model travels with its tokenizer; give the one that made the ids")
        require_fast(tokenizer)
        source.check_tokenizer(tokenizer)
        source.check_model(model)
        size = tokenise.vocabulary_size(tokenizer)
        rows = getattr(model, "get_input_embeddings")().weight.shape[0]  # noqa: B009
        if not source.vocab_size <= size <= rows:
            raise ValueError(
                f"tokenizer: it has {size:,} tokens, the ids go up to {source.vocab_size - 1:,} and the model's table has "
                f"{rows:,} rows; is it another model's?"
            )
        pad, sep = tokenise.special_ids(tokenizer)
        for name, theirs, ours in (("padding", pad, source.pad_id), ("closing", sep, source.sep_id)):
            if theirs != ours and ours is not None:
                raise ValueError(
                    f"tokenizer: its {name} token is {theirs}, that of the ids {ours}; is it another model's?"
                )
        limit = source.max_length if source.max_length is not None else tokenise.model_max_length(tokenizer)
        direction = str(getattr(tokenizer, "truncation_side", "right"))
        self.settings = {
            "fingerprint": tokenise.tokenizer_fingerprint(tokenizer),
            "max_length": limit,
            "direction": direction,
            "pad_id": source.pad_id,
            "vocab_size": size,
        }
        self.folder = target.parent
        others = [p.name for p in self.folder.glob("*.onnx") if p.name != target.name and not p.name.startswith(".")]
        beside = self.folder / TOKENIZER_FILE
        self.files = tokenizer_files(tokenizer, limit)
        ours_alone = target.exists() and not others  # an earlier export of this model, which is replaced
        if beside.is_file() and not ours_alone and not self._same(beside):
            needs = f", which {', '.join(sorted(others))} may need" if others else ""
            raise ValueError(f"path: {beside} is another tokenizer{needs}; take a folder of its own")
        self.kept = beside.is_file() and not ours_alone  # the same tokenizer, which somebody else put there
        self._prove(tokenizer, limit)

    def _same(self, file: Path) -> bool:
        try:
            TextInput(file, self.settings)
        except ValueError:
            return False
        return True

    def _stored(self, folder: Path) -> TextInput:
        (folder / TOKENIZER_FILE).write_text(self.files[TOKENIZER_FILE], encoding="utf-8")
        return TextInput(folder / TOKENIZER_FILE, self.settings)

    def _prove(self, tokenizer: Any, limit: int | None) -> None:
        """The stored file gives the ids that the tokenizer gives."""
        with tempfile.TemporaryDirectory() as folder:
            stored = self._stored(Path(folder)).encode(PROBES)
        ids, offsets = tokenise.encode(PROBES, tokenizer, limit, progress=False)
        for n, row in enumerate(stored):
            if row != ids[offsets[n] : offsets[n + 1]].tolist():
                raise ExportError(
                    f"tokenizer: the stored file reads {PROBES[n][:40]!r} differently; no file was written"
                )

    def predictor(self, model: Path) -> Predictor:
        """A predictor on `model`, which is not in its place yet."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "model.onnx"
            place.symlink_to(model.resolve())
            self._stored(Path(folder))
            return Predictor(place)

    def write(self) -> None:
        """Put the files beside the model, each by rename; the same tokenizer's that lie there are left as they are."""
        if self.kept:
            return
        for name, text in self.files.items():
            temporary = self.folder / f".{name}-{os.getpid()}"
            try:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(self.folder / name)
            finally:
                temporary.unlink(missing_ok=True)
