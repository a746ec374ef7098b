"""Export of text models: token ids as input, the tokenizer in files next to the model."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spurmix.data.sources.tokens import TokenSource
from spurmix.deploy.export.inputs import ExportInput, TraceableModel
from spurmix.deploy.export.precision import float_logits
from spurmix.deploy.export.text_tokenizer import ExportedTokenizer
from spurmix.deploy.predictor import Predictor, PredictorInput
from spurmix.deploy.tokenizer import TextSettings
from spurmix.train.text import unwrapped


class TextExport(ExportInput):
    """Token ids of a source as model input.

    Args:
        source: The texts.
        tokenizer: Checked tokenizer of the texts.
    """

    def __init__(self, source: TokenSource, tokenizer: ExportedTokenizer) -> None:
        self._source, self._tokenizer = source, tokenizer

    def traceable(self, model: nn.Module) -> TraceableModel:
        """Wrap `model` so that it takes token ids and attention mask and returns a tensor."""
        tokens = self._source.gather(torch.arange(3) % len(self._source))
        # A dimension of size 1 in the example would not become dynamic.
        ids, mask = (F.pad(t.long(), (0, max(0, 2 - t.shape[1]))) for t in tokens.tensors())
        dynamic = {0: "batch", 1: "sequence"}
        return TraceableModel(_TextLogits(model), (ids, mask), ["input_ids", "attention_mask"], (dynamic, dynamic))

    def predictor_input(self, index: Tensor) -> PredictorInput:
        """Return token ids and attention mask, `[B, S]`."""
        tokens = self._source.raw(index)
        return {"input_ids": tokens.ids.numpy(), "attention_mask": tokens.mask.numpy()}

    def text_settings(self) -> TextSettings:
        """Return the settings of the tokenizer."""
        return self._tokenizer.settings

    def open_predictor(self, path: Path) -> Predictor:
        """Open the exported file together with its tokenizer."""
        return self._tokenizer.open_predictor(path)

    def write_files(self) -> None:
        """Write the tokenizer files next to the model."""
        self._tokenizer.write()


class _TextLogits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = unwrapped(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return float_logits(self.model(input_ids=input_ids, attention_mask=attention_mask))
