"""The command `spurmix demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spurmix.cli.demo.policies import COMPARED
from spurmix.core import policies


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the pictures and model.onnx.")] = Path("demo-out"),
    policy: Annotated[
        str, typer.Option(help=f"Policy that debiases the model: {', '.join(policies.__all__)}.")
    ] = "balance_attributes",
    task: Annotated[str, typer.Option(help='"images" or "text".')] = "images",
    model: Annotated[
        str | None,
        typer.Option(help='"small" or "resnet50" for images, "minilm" for text.', show_default="small; text: minilm"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of data, weights and sampling.", min=0)] = 0,
    pretrain_epochs: Annotated[
        float | None,
        typer.Option(help="Epochs of pre-training without debiasing.", min=0.01, show_default="depends on the task"),
    ] = None,
    debias_epochs: Annotated[
        float | None,
        typer.Option(
            help="Epochs of the training with each method, after pre-training.",
            min=0.01,
            show_default="depends on the task",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help=f"Train with several methods and compare them: {', '.join(COMPARED)}.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Number of seeds to train with, from --seed upwards.", min=1)] = 1,
    full: Annotated[
        bool,
        typer.Option("--full", help="Text: fine-tune the whole encoder on mixed embeddings instead of only its head."),
    ] = False,
) -> None:
    """Train a biased model (ERM) and a debiased model equally long, export the latter to ONNX, and report accuracies."""
    epochs = (pretrain_epochs, debias_epochs)
    if task == "text":
        from spurmix.cli.demo import texts

        texts.run(
            out, policy=policy, model_name=model or "minilm", seed=seed, epochs=epochs, full=full, compare=compare,
            seeds=seeds,
        )  # fmt: skip
        return
    if task != "images":
        raise ValueError(f"--task must be images or text, got {task!r}")
    if full:
        raise ValueError("--full is for --task text; for images the whole model is always fine-tuned")
    from spurmix.cli.demo import images

    images.run(out, policy=policy, model_name=model or "small", seed=seed, epochs=epochs, compare=compare, seeds=seeds)
