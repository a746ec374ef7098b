"""The demo for texts: a pre-trained MiniLM on sentences from templates."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from spurmix.cli.demo import sentences
from spurmix.cli.demo.policies import check_options, demo_policies, hide_attributes
from spurmix.cli.report.demo import write_report
from spurmix.cli.report.text import ReportText, TextSample
from spurmix.core import policies
from spurmix.core.groups import GroupIndex
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.tokens import TokenSource
from spurmix.deploy.export import export_onnx
from spurmix.train import models
from spurmix.train.evaluate import evaluate
from spurmix.train.finetune import finetune
from spurmix.train.head import extract_features, retrain_head
from spurmix.train.text import MixedInputs

if TYPE_CHECKING:
    from spurmix.core.policy import MixPolicy

MAX_LENGTH = 64
HEAD_LEARNING_RATE, HEAD_BATCH_SIZE, HEAD_EPOCHS = 1e-3, 128, (10.0, 20.0)
FULL_LEARNING_RATE, FULL_BATCH_SIZE, FULL_EPOCHS = 1e-4, 32, (1.0, 2.0)

TEXT = ReportText(
    title="Debiasing a text model that learned which group is mentioned",
    data="The texts were made from templates. A text names an occasion, other guests (students or pensioners), and an "
    "opinion. Only the opinion determines the class: complaint or praise. In the training set, 95% of the praise mentions "
    "students and 95% of the complaints mention pensioners. In the test set, it is 50%, and the opinions use other words. "
    "A pre-trained MiniLM that is trained without debiasing (ERM) learns which group is mentioned.",
    attribute="mentioned group",
    file="accepts token ids. The tokenizer is stored next to it, so that spurmix.Predictor accepts strings.",
)
FULL_TEXT = dataclasses.replace(
    TEXT,
    data=f"{TEXT.data} 15% of the training labels are wrong: they contradict the opinion. Otherwise, an encoder that is "
    "fully fine-tuned learns the opinion and ignores the group.",
)


def run(
    out: Path,
    *,
    policy: str,
    model_name: str = "minilm",
    seed: int,
    epochs: tuple[float | None, float | None] = (None, None),
    full: bool = False,
    train_size: int = sentences.TRAIN,
    test_per_group: int = sentences.TEST_PER_GROUP,
) -> dict[str, object]:
    """Run the demo.

    Args:
        out: Folder for all results.
        policy: Policy that debiases the model.
        model_name: "minilm".
        seed: Random seed.
        epochs: Epochs of training without debiasing, and with the policy. None uses the defaults.
        full: Whether to fine-tune the whole encoder on mixed embeddings, or only its head on mixed features.
        train_size: Number of training texts.
        test_per_group: Number of test texts per group.

    Returns:
        The contents of report.json.

    Raises:
        ValueError: If an option is invalid.
    """
    start = time.perf_counter()
    if model_name != "minilm":
        raise ValueError(f"--model must be minilm for texts, got {model_name!r}")
    check_options(out, policy)
    torch.manual_seed(seed)
    from transformers import AutoTokenizer

    print("data: sentences from templates")
    train, test = sentences.load(seed, train_size, test_per_group, sentences.CONTRADICTING if full else 0.0)
    names = sentences.CLASS_NAMES, sentences.ATTRIBUTE_NAMES
    train_groups = GroupIndex(train.label, train.attribute, class_names=names[0], attribute_names=names[1])
    test_groups = GroupIndex(test.label, test.attribute, class_names=names[0], attribute_names=names[1])
    print(train_groups.table())
    model = MixedInputs(models.minilm(2))
    tokenizer = AutoTokenizer.from_pretrained(models.minilm_folder(), local_files_only=True, trust_remote_code=False)
    source, held_out = (TokenSource.from_texts(s.examples, tokenizer, max_length=MAX_LENGTH) for s in (train, test))
    default = FULL_EPOCHS if full else HEAD_EPOCHS
    passes = [e if e is not None else d for e, d in zip(epochs, default, strict=True)]
    fit = _full_training(model, source, passes, seed) if full else _head_training(model, source, passes, seed)

    print("training without debiasing (ERM)")
    fit(train_groups, policies.erm(), 0)
    before = evaluate(model, held_out, test_groups, train_groups=train_groups)

    groups, prior = hide_attributes(train.label, train.attribute, seed, *names)
    candidates = demo_policies(prior)
    audits = {name: p.audit(groups, prior=prior) for name, p in candidates.items()}
    print(audits[policy])

    print(f"fine-tuning with {policy}")
    fit(groups, candidates[policy], 1)
    after = evaluate(model, held_out, test_groups, train_groups=train_groups)

    exported = export_onnx(
        model, out / "model.onnx", source=held_out, groups=test_groups, train_groups=train_groups, tokenizer=tokenizer
    )
    settings: dict[str, object] = {"task": "text", "policy": policy, "model": model_name, "full": full, "seed": seed}
    samples = _text_samples(source, groups, candidates[policy], seed + 1, train.examples)
    return write_report(
        out, FULL_TEXT if full else TEXT, settings, before=before, after=after, audits=audits, exported=exported,
        samples=samples, start=start,
    )  # fmt: skip


Fit = Callable[[GroupIndex, "MixPolicy", int], None]
"""Trains a model with groups and a policy. The number is 0 for training without debiasing, 1 for debiasing."""


def _head_training(model: MixedInputs, source: TokenSource, passes: list[float], seed: int) -> Fit:
    """Train only the head, on features that are computed once."""
    features = extract_features(model, source)

    def fit(groups: GroupIndex, policy: MixPolicy, phase: int) -> None:
        retrain_head(
            model, source, groups, policy, features=features, batch_size=HEAD_BATCH_SIZE, epochs=passes[phase],
            seed=seed + phase, learning_rate=HEAD_LEARNING_RATE,
        )  # fmt: skip

    return fit


def _full_training(model: MixedInputs, source: TokenSource, passes: list[float], seed: int) -> Fit:
    """Train the whole encoder."""
    batches = round(sum(passes) * len(source) / FULL_BATCH_SIZE)

    def fit(groups: GroupIndex, policy: MixPolicy, phase: int) -> None:
        loader = MixLoader(source, groups, policy, FULL_BATCH_SIZE, epochs=passes[phase], seed=seed + phase)
        finetune(
            model, loader, learning_rate=FULL_LEARNING_RATE, schedule="linear", warmup=0.1, clip=1.0,
            after_step=_print_estimate(len(loader), batches) if phase == 0 else None,
        )  # fmt: skip

    return fit


def _print_estimate(first: int, batches: int) -> Callable[[int], None]:
    """Return a function that prints the expected duration of all `batches` once, after some of the `first` batches."""
    start = time.perf_counter()

    def after_step(step: int) -> None:
        if step == min(5, first):
            minutes = (time.perf_counter() - start) / step * batches / 60
            print(f"training takes {batches} batches, about {minutes:.1f} minutes")

    return after_step


def _text_samples(
    source: TokenSource, groups: GroupIndex, policy: MixPolicy, seed: int, texts: list[str]
) -> list[TextSample]:
    """Return five samples of the training with the policy."""
    batch = next(iter(MixLoader(source, groups, policy, 5, seed=seed, copy=True, prefetch=0)))
    name = sentences.CLASS_NAMES
    columns = (batch.lam, batch.index, batch.label, batch.partner, batch.partner_label)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    return [TextSample(lam, texts[i], name[y], texts[j], name[z]) for lam, i, y, j, z in rows]
