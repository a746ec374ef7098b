"""The demo for texts: a pre-trained MiniLM on sentences from templates."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from spurmix.cli.demo import sentences
from spurmix.cli.demo.attributed import DemoData, divide
from spurmix.cli.demo.experiment import Experiment, check_options, run_seeds
from spurmix.cli.report.demo import write_report
from spurmix.cli.report.text import ReportText, TextSample
from spurmix.core import policies
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.tokens import TokenSource
from spurmix.deploy.export import export_onnx
from spurmix.train import models
from spurmix.train.finetune import finetune
from spurmix.train.head import extract_features, retrain_head
from spurmix.train.text import MixedInputs

if TYPE_CHECKING:
    from spurmix.core.policy import MixPolicy
    from spurmix.train.finetune import AfterStep

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
    compare: bool = False,
    seeds: int = 1,
    train_size: int = sentences.TRAIN,
    test_per_group: int = sentences.TEST_PER_GROUP,
) -> dict[str, object]:
    """Run the demo.

    Args:
        out: Folder for all results.
        policy: Policy that debiases the model.
        model_name: "minilm".
        seed: Random seed.
        epochs: Epochs of pre-training without debiasing, and of the training with each method. None uses the defaults.
        full: Whether to fine-tune the whole encoder on mixed embeddings, or only its head on mixed features.
        compare: Whether to train with several methods and compare them.
        seeds: Number of seeds, from `seed` upwards. The model, the pictures and the audit are those of the first.
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
    from transformers import AutoTokenizer

    print("data: sentences from templates")
    tokenizer = AutoTokenizer.from_pretrained(models.minilm_folder(), local_files_only=True, trust_remote_code=False)
    default = FULL_EPOCHS if full else HEAD_EPOCHS
    pretrain, debias = (e if e is not None else d for e, d in zip(epochs, default, strict=True))
    texts: list[list[str]] = []

    def prepare(seed: int) -> Experiment:
        torch.manual_seed(seed)
        train, test = sentences.load(seed, train_size, test_per_group, sentences.CONTRADICTING if full else 0.0)

        def make_source(examples: list[str]) -> TokenSource:
            texts.append(examples)
            return TokenSource.from_texts(examples, tokenizer, max_length=MAX_LENGTH)

        data = divide(train, test, seed, make_source, sentences.CLASS_NAMES, sentences.ATTRIBUTE_NAMES)
        make = _full_training if full else _head_training
        return make(MixedInputs(models.minilm(2)), data, (pretrain, debias), seed)

    first, results = run_seeds(prepare, policy, seed, seeds, compare=compare)
    data = first.data
    exported = export_onnx(
        first.model, out / "model.onnx", source=data.test, groups=data.test_groups, train_groups=data.train_groups,
        tokenizer=tokenizer,
    )  # fmt: skip
    settings: dict[str, object] = {"task": "text", "policy": policy, "model": model_name, "full": full, "seed": seed}
    samples = _text_samples(data, results[0].policies[policy], seed + 1, texts[0])
    text = FULL_TEXT if full else TEXT
    return write_report(out, text, settings, results, exported=exported, samples=samples, start=start)


def _head_training(model: MixedInputs, data: DemoData, epochs: tuple[float, float], seed: int) -> Experiment:
    """Train only the head, on features that are computed once."""
    features = extract_features(model, data.train)

    def fit(policy: MixPolicy, phase: int, after_step: AfterStep | None) -> None:
        retrain_head(
            model, data.train, data.groups, policy, features=features, batch_size=HEAD_BATCH_SIZE,
            epochs=epochs[phase], seed=seed + phase, learning_rate=HEAD_LEARNING_RATE, after_step=after_step,
        )  # fmt: skip

    batches = math.ceil(epochs[1] * len(features) / HEAD_BATCH_SIZE)
    return Experiment(model, data, batches, fit, features=lambda: features)


def _full_training(model: MixedInputs, data: DemoData, epochs: tuple[float, float], seed: int) -> Experiment:
    """Train the whole encoder."""

    def loader(policy: MixPolicy, phase: int) -> MixLoader:
        return MixLoader(data.train, data.groups, policy, FULL_BATCH_SIZE, epochs=epochs[phase], seed=seed + phase)

    first, batches = (len(loader(policies.erm(), phase)) for phase in (0, 1))

    def fit(policy: MixPolicy, phase: int, after_step: AfterStep | None) -> None:
        finetune(
            model, loader(policy, phase), learning_rate=FULL_LEARNING_RATE, schedule="linear", warmup=0.1, clip=1.0,
            after_step=_print_estimate(first, batches) if phase == 0 else after_step,
        )  # fmt: skip

    return Experiment(model, data, batches, fit, features=lambda: extract_features(model, data.train))


def _print_estimate(first: int, second: int) -> Callable[[int], None]:
    """Return a function that prints the expected duration once, after some of the `first` batches of pre-training."""
    start = time.perf_counter()

    def after_step(step: int) -> None:
        if step == min(5, first):
            seconds = (time.perf_counter() - start) / step
            print(
                f"pre-training takes {first} batches, about {seconds * first / 60:.1f} minutes, "
                f"and each method {second} batches, about {seconds * second / 60:.1f} minutes"
            )

    return after_step


def _text_samples(data: DemoData, policy: MixPolicy, seed: int, texts: list[str]) -> list[TextSample]:
    """Return five samples of the training with the policy."""
    batch = next(iter(MixLoader(data.train, data.groups, policy, 5, seed=seed, copy=True, prefetch=0)))
    name = sentences.CLASS_NAMES
    columns = (batch.lam, batch.index, batch.label, batch.partner, batch.partner_label)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    return [TextSample(lam, texts[i], name[y], texts[j], name[z]) for lam, i, y, j, z in rows]
