"""`spurmix demo --task text`: the same for texts, on a pre-trained MiniLM."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spurmix.cli import demo_sentences, report
from spurmix.cli.demo import Epochs, all_policies, check, partly_known
from spurmix.core import policies
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.tokens import TokenSource
from spurmix.deploy.export import export_onnx
from spurmix.train import models
from spurmix.train.evaluate import evaluate
from spurmix.train.finetune import finetune
from spurmix.train.head import extract_features, retrain_head
from spurmix.train.text import MixedInputs

MAX_LENGTH = 64
HEAD: dict[str, Any] = {"learning_rate": 1e-3}
HEAD_BATCH, HEAD_EPOCHS = 128, (10.0, 20.0)
FULL: dict[str, Any] = {"learning_rate": 1e-4, "schedule": "linear", "warmup": 0.1, "clip": 1.0}
FULL_BATCH, FULL_EPOCHS = 32, (1.0, 2.0)

STORY = report.Story(
    title="Debiasing a text model that learned who is mentioned",
    data="The texts were put together from templates written for this demo: an occasion, other guests (students or "
    "pensioners, who do nothing but be there) and a verdict. In the training set 95% of the praise mentions students and "
    "95% of the complaints mention pensioners, in the test set half, with verdicts in other words. Plain training (ERM) "
    "on a pre-trained MiniLM learns who is mentioned.",
    attribute="mentioned group",
    file="reads token ids; the tokenizer lies beside it, and spurmix.Predictor takes strings.",
)
FULL_STORY = dataclasses.replace(
    STORY,
    data=f"{STORY.data} In training 15% of the verdicts are those of the other class: an encoder that is fine-tuned as a "
    "whole would read clean verdicts and nothing else.",
)


def run(
    out: Path,
    *,
    policy: str,
    model_name: str = "minilm",
    seed: int,
    epochs: Epochs = (None, None),
    full: bool = False,
    train_size: int = demo_sentences.TRAIN,
    test_per_group: int = demo_sentences.TEST_PER_GROUP,
) -> dict[str, Any]:
    """Run the demo and write everything into `out`; returns the contents of report.json.

    Args:
        full: fine-tune the whole encoder on mixed embeddings; otherwise its head on mixed features.
    """
    began = time.perf_counter()
    if model_name != "minilm":
        raise ValueError(f"--model must be minilm for texts, got {model_name!r}")
    check(out, policy)
    torch.manual_seed(seed)
    from transformers import AutoTokenizer

    print("data: sentences from templates")
    contradicting = demo_sentences.CONTRADICTING if full else 0.0
    train, test = demo_sentences.load(seed, train_size, test_per_group, contradicting)
    names: dict[str, Any] = {
        "class_names": demo_sentences.CLASS_NAMES,
        "attribute_names": demo_sentences.ATTRIBUTE_NAMES,
    }
    train_groups = GroupIndex(train.label, train.attribute, **names)
    test_groups = GroupIndex(test.label, test.attribute, **names)
    print(train_groups.table())
    model = MixedInputs(models.minilm(2))
    tokenizer = AutoTokenizer.from_pretrained(models.minilm_folder(), local_files_only=True)
    source, held_out = (TokenSource.from_texts(s.texts, tokenizer, max_length=MAX_LENGTH) for s in (train, test))
    features = None if full else extract_features(model, source)
    usual = FULL_EPOCHS if full else HEAD_EPOCHS
    both = [own if own is not None else default for own, default in zip(epochs, usual, strict=True)]
    batches = round(sum(both) * len(source) / FULL_BATCH)

    def fit(groups: GroupIndex, policy: MixPolicy, step: int) -> None:
        passes = both[step]
        if features is not None:
            options: dict[str, Any] = {"batch_size": HEAD_BATCH, "epochs": passes, "seed": seed + step}
            retrain_head(model, source, groups, policy, features=features, **options, **HEAD)
        else:
            loader = MixLoader(source, groups, policy, FULL_BATCH, epochs=passes, seed=seed + step)
            finetune(model, loader, after_step=_estimate(len(loader), batches) if step == 0 else None, **FULL)

    print("plain training (ERM): the biased model")
    fit(train_groups, policies.erm(), 0)
    before = evaluate(model, held_out, test_groups, train_groups=train_groups)

    groups, prior = partly_known(train.label, train.attribute, seed, **names)
    candidates = all_policies(groups, prior)
    audits = {name: p.audit(groups, prior=prior) for name, p in candidates.items()}
    print(audits[policy])

    print(f"debiasing with {policy}")
    fit(groups, candidates[policy], 1)
    after = evaluate(model, held_out, test_groups, train_groups=train_groups)

    exported = export_onnx(
        model, out / "model.onnx", source=held_out, groups=test_groups, train_groups=train_groups, tokenizer=tokenizer
    )
    settings = {"task": "text", "policy": policy, "model": model_name, "full": full, "seed": seed}
    samples = _samples(source, groups, candidates[policy], seed + 1, train.texts)
    return report.finish(out, FULL_STORY if full else STORY, settings, before, after, audits, exported, samples, began)


def _estimate(first: int, batches: int) -> Callable[[int], None]:
    """Says once, after a few of the `first` batches, how long all `batches` take on this machine."""
    began = time.perf_counter()

    def after(made: int) -> None:
        if made == min(5, first):
            minutes = (time.perf_counter() - began) / made * batches / 60
            print(f"{batches} batches through the encoder before and after debiasing: about {minutes:.1f} minutes")

    return after


def _samples(
    source: TokenSource, groups: GroupIndex, policy: MixPolicy, seed: int, texts: list[str]
) -> list[report.MixedText]:
    """Five mixed samples as they were trained on."""
    batch = next(iter(MixLoader(source, groups, policy, 5, seed=seed, copy=True, prefetch=0)))
    name = demo_sentences.CLASS_NAMES
    columns = (batch.lam, batch.index, batch.label, batch.partner, batch.partner_label)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    return [report.MixedText(lam, texts[i], name[y], texts[j], name[z]) for lam, i, y, j, z in rows]
