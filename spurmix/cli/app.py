"""The command line. Errors are one message; SPURMIX_TRACEBACK=1 shows where they come from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from spurmix._version import __version__
from spurmix.cli import data, train
from spurmix.cli.failure import tell

app = typer.Typer(
    name="spurmix",
    pretty_exceptions_enable=False,
    help="Group-balanced sampling and mixing to debias models.",
    no_args_is_help=True,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"spurmix {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def versions() -> dict[str, str]:
    """Versions of what matters here, "absent" where a package is not installed."""
    found = {"spurmix": __version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "triton", "transformers", "accelerate", "onnx", "onnxruntime", "scikit-learn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def gpu_state(torch: Any) -> str:
    """The current GPU: its name, capability and free memory; or why there is none."""
    if not torch.cuda.is_available():
        return "none is seen" if torch.version.cuda else "none is seen (this torch is built without CUDA)"
    free, total = torch.cuda.mem_get_info()
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    name, gib = torch.cuda.get_device_name(), 2**30
    return f"{name}, compute capability {capability}, {free / gib:.1f} of {total / gib:.1f} GiB free"


@app.command()
def info() -> None:
    """Show backends, the state of the compiled modules, and versions."""
    from rich.console import Console
    from rich.table import Table

    from spurmix import _build_stamp

    table = Table("what", "state")
    for name, state in _build_stamp.status().items():
        table.add_row(f"module {name}", state)
    try:
        import torch

        from spurmix.ops import backends, schema

        names = sorted({s.split("(", 1)[0] for s in schema.SCHEMAS if "_out(" not in s and "_backward(" not in s})
        for name in names:
            table.add_row(f"op {name}", f"CPU: {backends.serving()}, GPU: {backends.serving('cuda')}")
        table.add_row("GPU", gpu_state(torch))
        if backends.serving() == "cpu":
            from spurmix import _C

            table.add_row("instruction set", _C.isa())
        table.add_row("threads", str(torch.get_num_threads()))
    except ModuleNotFoundError as error:
        table.add_row("ops", f"need the package {error.name!r}: pip install 'spurmix\\[train]'")  # escaped for rich
    for name, version in versions().items():
        table.add_row(name, version)
    Console().print(table)


@app.command("demo")
def _demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the pictures and model.onnx.")] = Path("demo-out"),
    policy: Annotated[str, typer.Option(help="Policy that debiases.")] = "balance_attributes",
    task: Annotated[str, typer.Option(help='"images" or "text".')] = "images",
    model: Annotated[
        str | None, typer.Option(help='"small" or "resnet50" for images, "minilm" for text; default: the first.')
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of data, weights and draws.", min=0)] = 0,
    pretrain_epochs: Annotated[
        float | None, typer.Option(help="Passes of plain training; default: what suits the task.", min=0.01)
    ] = None,
    debias_epochs: Annotated[float | None, typer.Option(help="Passes of debiasing.", min=0.01)] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Text: fine-tune the whole encoder on mixed embeddings, not its head alone.")
    ] = False,
) -> None:
    """Pre-train a biased model, debias it, export it to ONNX, and report accuracy per group."""
    epochs = (pretrain_epochs, debias_epochs)
    if task == "text":
        from spurmix.cli import demo_text

        demo_text.run(out, policy=policy, model_name=model or "minilm", seed=seed, epochs=epochs, full=full)
        return
    if task != "images":
        raise ValueError(f"--task must be images or text, got {task!r}")
    if full:
        raise ValueError("--full is for --task text; of images the whole model is always fine-tuned")
    from spurmix.cli import demo

    demo.run(out, policy=policy, model_name=model or "small", seed=seed, epochs=epochs)


@app.command()
def warmup(
    batch: Annotated[list[int], typer.Option(help="Batch size; repeatable.", min=1)] = [256],  # noqa: B006
    dtype: Annotated[list[str], typer.Option(help="Of inputs and logits; repeatable.")] = ["bfloat16"],  # noqa: B006
    size: Annotated[int, typer.Option(help="Height and width of the model's input.", min=1)] = 224,
    channels: Annotated[int, typer.Option(help="Of the images.", min=1)] = 3,
    columns: Annotated[int, typer.Option(help="Of feature rows.", min=1)] = 2048,
    classes: Annotated[int, typer.Option(help="Of the logits.", min=1)] = 1000,
    crop: Annotated[bool, typer.Option(help="Random resized crops.")] = False,
    flip: Annotated[bool, typer.Option(help="Random flips.")] = False,
    channels_last: Annotated[bool, typer.Option(help="Memory format of the input.")] = True,
    capability: Annotated[
        int | None, typer.Option(help="Compile for this compute capability (90: H100) without a GPU.", min=70, max=130)
    ] = None,
) -> None:
    """Compile and tune the Triton kernels ahead: otherwise the first call of each takes seconds."""
    from spurmix.cli import warmup as warming

    unknown = [name for name in dtype if name not in warming.DTYPES]
    if unknown:
        raise ValueError(f"--dtype must be {' or '.join(warming.DTYPES)}, got {unknown[0]!r}")
    shapes = [
        warming.Shapes(b, size, channels, columns, classes, warming.DTYPES[d], crop, flip, channels_last)
        for b in batch
        for d in dtype
    ]
    warming.run(shapes, capability)


data.register(app)
train.register(app)


def main() -> None:
    """Entry point of the command `spurmix`."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        code = app(standalone_mode=first)  # which tells wrong flags in a way of its own, and exits
        sys.exit(code if isinstance(code, int) else 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong flags, which the first process tells
            tell(ValueError(error.format_message()))
            sys.exit(error.exit_code)  # type: ignore[attr-defined]
        if _interrupted(error):
            sys.exit(130)
        expected = (ValueError, TypeError, ImportError, OSError, RuntimeError, MemoryError)
        if os.environ.get("SPURMIX_TRACEBACK") or not isinstance(error, expected):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            error = ImportError("this command needs the package 'torch': pip install 'spurmix[train]'")
        tell(error)
        sys.exit(2 if isinstance(error, (ValueError, TypeError)) else 1)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: imports wrap what comes while they run."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
