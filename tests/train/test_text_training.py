"""Fine-tuning of text models on mixed texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_text_models import GROUPS, plain, source, text_loader, two_classes
from torch import nn

from spurmix import MixedInputs, MixLoader, evaluate, finetune, policies
from spurmix.train.evaluate import predict
from spurmix.train.models import parameter_groups


def test_fine_tuning_learns_and_evaluates() -> None:
    model = MixedInputs(two_classes())
    result = finetune(model, text_loader(steps=120), learning_rate=5e-3, schedule="linear", warmup=0.1, clip=1.0)
    assert result.losses[-1] < 0.9 * result.losses[0]
    evaluation = evaluate(model, source(), GROUPS)
    assert evaluation.average > 0.9
    assert sum(g.count for g in evaluation.groups) == 160
    inner = evaluate(model.model, source(), GROUPS, batch_size=7)
    assert inner.pairs is not None and evaluation.pairs is not None
    assert [(g.name, g.count, g.accuracy) for g in inner.groups] == [
        (g.name, g.count, g.accuracy) for g in evaluation.groups
    ]
    assert inner.ece == pytest.approx(evaluation.ece, abs=1e-6)  # batches of other sizes round differently
    alone = plain(model.model.eval(), *source().gather(torch.arange(160)).tensors())
    torch.testing.assert_close(predict(model, source(), batch_size=9), alone, atol=1e-5, rtol=0)


def test_error_for_a_model_without_wrapper() -> None:
    with pytest.raises(TypeError, match=r"BertForSequenceClassification does not accept mixed texts; use MixedInputs"):
        finetune(two_classes(), text_loader())


def test_unmixed_training_equals_a_plain_training_loop() -> None:
    wrapped, bare = MixedInputs(two_classes().eval()), two_classes().eval()
    erm = MixLoader(source(), GROUPS, policies.erm(), 16, steps=3, copy=True)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    for batch in erm:
        logits = bare(input_ids=batch.input.ids, attention_mask=batch.input.mask.long()).logits
        optimizer.zero_grad()
        F.cross_entropy(logits, batch.label).backward()
        optimizer.step()
    options: Any = dict(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.1, schedule="constant")
    for module in wrapped.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    finetune(wrapped, MixLoader(source(), GROUPS, policies.erm(), 16, steps=3), **options)
    for (name, a), b in zip(wrapped.named_parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_norms_and_biases_do_not_decay() -> None:
    model = MixedInputs(two_classes())
    decaying, free = parameter_groups(model, 0.01)
    names = {id(p): n for n, p in model.named_parameters()}
    assert free["weight_decay"] == 0.0
    assert all(names[id(p)].endswith(".bias") or "LayerNorm" in names[id(p)] for p in free["params"])
    assert not any(names[id(p)].endswith(".bias") or "LayerNorm" in names[id(p)] for p in decaying["params"])
    assert len(decaying["params"]) + len(free["params"]) == len(names)


@pytest.mark.parametrize("kind", ["bert", "mean"])
def test_frozen_backbone_trains_the_head_only(kind: str) -> None:
    model = MixedInputs(two_classes(kind))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    finetune(model, text_loader(), freeze="backbone")
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_resumed_text_training_is_bit_identical(tmp_path: Path) -> None:
    options: Any = dict(save_every=3, max_checkpoints=9, clip=1.0)
    whole = MixedInputs(two_classes())
    torch.manual_seed(11)
    finetune(whole, text_loader(), output=tmp_path, **options)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    saved = json.loads((newest / "state.json").read_text())
    assert "bert.embeddings.word_embeddings.weight" in json.dumps(saved)  # the inner model's names
    shutil.rmtree(newest)
    resumed = MixedInputs(two_classes())
    torch.manual_seed(99)
    finetune(resumed, text_loader(), output=tmp_path, resume=True, **options)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_bf16_training_keeps_float32_weights() -> None:
    model = MixedInputs(two_classes())
    seen: list[torch.dtype] = []
    hook = model.classifier.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    assert np.isfinite(finetune(model, text_loader(steps=2), mixed_precision="bf16").loss)
    assert set(seen) == {torch.bfloat16}
    hook.remove()
    twin = two_classes()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(predict(model, source()), predict(twin, source()))
    assert model.model.get_input_embeddings().weight.dtype == torch.float32
