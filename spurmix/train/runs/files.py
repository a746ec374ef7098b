"""The files of a run's folder: held by one job at a time, on the disk before they appear, checked when they are read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from spurmix.train.checkpoint import synchronise
from spurmix.train.runs.config import RunConfig
from spurmix.train.runs.model import describe, rebuild

CONFIG, ABOUT, EVALUATIONS, MODEL = "config.toml", "run.json", "evaluations.jsonl", "model.safetensors"
CHECKPOINTS = "checkpoints"


def hold(folder: Path) -> IO[str]:
    """Take the folder for this process, as long as the file that is returned is open, and clear away what killed ones left.

    Raises:
        ValueError: where another process holds it, or it cannot be written.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / ".lock").open("w")
    except OSError as error:
        raise ValueError(f"out: cannot write into {folder} ({error.strerror or error})") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise ValueError(f"out: another process is training into {folder}") from None
    for path in folder.iterdir():
        if re.fullmatch(r"\..+-\d+(\.png)?|metrics\.\d+", path.name):
            path.unlink(missing_ok=True)
    return held


def has_progress(folder: Path) -> bool:
    """Whether the folder holds what training made: weights, or a checkpoint."""
    return (folder / MODEL).exists() or any((folder / CHECKPOINTS).glob("step-*"))


def clear(folder: Path) -> None:
    """Remove what a run without a checkpoint wrote."""
    for path in (
        folder / CONFIG,
        folder / ABOUT,
        folder / EVALUATIONS,
        folder / "metrics.jsonl",
        *bests(folder).values(),
    ):
        path.unlink(missing_ok=True)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file to write that gets its name when it is whole; where it fails, nothing is left of it.

    Raises:
        OSError: where it cannot be written, naming `path`.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        yield temporary
        synchronise(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file by rename."""
    with appearing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """What `run.json` says of a run, {} where there is none.

    Raises:
        ValueError: for a damaged file.
    """
    path = folder / ABOUT
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text())
        about["dataset"], about["classes"], about["shape"], about["groups"], about["architecture"]["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return about


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The rows of `evaluations.jsonl`; none where there is no such file.

    Raises:
        ValueError: for a damaged line, naming it.
    """
    path, rows = folder / EVALUATIONS, []
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] + row["worst_group"] + row["average"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}, is damaged; remove the lines from there on and resume") from None
        rows.append(row)
    return rows


def write_evaluations(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write `evaluations.jsonl`."""
    write_text(folder / EVALUATIONS, "".join(json.dumps(row) + "\n" for row in rows))


def best_path(folder: Path, step: int) -> Path:
    """Where the weights of batch `step` are kept, while they are the best."""
    return folder / f"best-{step:08d}.safetensors"


def bests(folder: Path) -> dict[int, Path]:
    """The kept weights, by step, ascending."""
    found = {int(p.stem.removeprefix("best-")): p for p in folder.glob("best-*.safetensors")}
    return dict(sorted(found.items()))


def prune_bests(folder: Path) -> None:
    """Remove weights that are not the best any more, wherever among the checkpoints the run may have to go on."""
    checkpoints = [int(p.name.removeprefix("step-")) for p in (folder / CHECKPOINTS).glob("step-*")]
    kept = bests(folder)
    before = [step for step in kept if step <= min(checkpoints, default=0)]
    for step in before[:-1]:
        kept[step].unlink(missing_ok=True)


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_weights(path: Path, model: nn.Module, about: dict[str, Any], config: RunConfig) -> None:
    """The model's parameters and buffers as one safetensors file; `about`, its architecture and a digest in the header."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    described = {**about, "architecture": describe(model, config), "digest": _digest(state)}
    with appearing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(state, str(temporary), metadata={"spurmix": json.dumps(described)})
        temporary.chmod(mode)  # safetensors lets nobody else read its files


def read_weights(path: Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Load what `write_weights` wrote into `model` (default: one that is made for it), and what its header says.

    Raises:
        ValueError: for a file that is missing, damaged or of another model.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["spurmix"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        if _digest(state) != about["digest"]:
            raise ValueError("its bytes are not those that were written")
        into = model if model is not None else rebuild(about["architecture"])
        into.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as the weights of this model: {error}") from None
    return into, about
