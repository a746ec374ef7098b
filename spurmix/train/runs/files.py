"""Files in the folder of a run: locked by one process, written by rename, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from spurmix.core.files import FileError, discard, read_json, read_json_lines
from spurmix.train.checkpoint import sync_to_disk
from spurmix.train.runs.config import RunConfig
from spurmix.train.runs.model import describe, rebuild

CONFIG, ABOUT, EVALUATIONS, MODEL = "config.toml", "run.json", "evaluations.jsonl", "model.safetensors"
CHECKPOINTS = "checkpoints"


class EvaluationRow(TypedDict):
    """Line of `evaluations.jsonl`."""

    step: int
    worst_group: float
    average: float
    adjusted_average: float
    worst_name: str


class _Architecture(TypedDict):
    model: str


class _About(TypedDict):
    """Entries of `run.json` that every version writes."""

    dataset: str
    classes: list[str]
    shape: list[int]
    groups: list[list[int]]
    architecture: _Architecture


def lock(folder: Path) -> IO[str]:
    """Lock the folder for this process, and remove temporary files of killed processes.

    Args:
        folder: Folder of the run. It is created if it does not exist.

    Returns:
        An open file. Closing it releases the lock.

    Raises:
        ValueError: If another process has locked the folder, or the folder is not writable.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        locked = (folder / ".lock").open("w")
    except OSError as error:
        raise ValueError(f"out: cannot write into {folder} ({error.strerror or error})") from None
    try:
        fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        locked.close()
        raise ValueError(
            f"out: another process is training into {folder}; wait for it or choose another folder"
        ) from None
    for path in folder.iterdir():
        if re.fullmatch(r"\..+-\d+(\.png)?|metrics\.\d+", path.name):
            path.unlink(missing_ok=True)
    return locked


def has_progress(folder: Path) -> bool:
    """Whether the folder has weights or a checkpoint."""
    return (folder / MODEL).exists() or any((folder / CHECKPOINTS).glob("step-*"))


def clear(folder: Path) -> None:
    """Remove the files of a run without a checkpoint."""
    for path in (
        folder / CONFIG,
        folder / ABOUT,
        folder / EVALUATIONS,
        folder / "metrics.jsonl",
        *bests(folder).values(),
    ):
        path.unlink(missing_ok=True)


@contextmanager
def write_by_rename(path: Path) -> Iterator[Path]:
    """Write a file by rename: it appears under its name when it is complete. After an error, nothing is left.

    Args:
        path: Name of the file.

    Yields:
        Name of the temporary file to write.

    Raises:
        OSError: If the file cannot be written. The message names `path`.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        yield temporary
        sync_to_disk(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        discard(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file by rename."""
    with write_by_rename(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """Read `run.json`.

    Args:
        folder: Folder of the run.

    Returns:
        The contents, {} if the file does not exist.

    Raises:
        ValueError: If the file is corrupt.
    """
    path = folder / ABOUT
    if not path.exists():
        return {}
    return {**read_json(path, _About)}


def read_evaluations(folder: Path) -> list[EvaluationRow]:
    """Read `evaluations.jsonl`.

    Args:
        folder: Folder of the run.

    Returns:
        The rows, [] if the file does not exist.

    Raises:
        ValueError: If a line is corrupt.
    """
    path = folder / EVALUATIONS
    try:
        return list(read_json_lines(path, EvaluationRow)) if path.exists() else []
    except FileError as error:
        raise ValueError(f"{error}; remove this line and all after it, then resume") from None


def write_evaluations(folder: Path, rows: Iterable[EvaluationRow]) -> None:
    """Write `evaluations.jsonl`."""
    write_text(folder / EVALUATIONS, "".join(json.dumps(row) + "\n" for row in rows))


def best_path(folder: Path, step: int) -> Path:
    """File of the best weights so far, those after `step` batches."""
    return folder / f"best-{step:08d}.safetensors"


def bests(folder: Path) -> dict[int, Path]:
    """Find the files of best weights, by step in ascending order."""
    found = {int(p.stem.removeprefix("best-")): p for p in folder.glob("best-*.safetensors")}
    return dict(sorted(found.items()))


def prune_bests(folder: Path) -> None:
    """Remove best weights that no run resumed from one of the checkpoints can need."""
    checkpoints = [int(p.name.removeprefix("step-")) for p in (folder / CHECKPOINTS).glob("step-*")]
    saved = bests(folder)
    before = [step for step in saved if step <= min(checkpoints, default=0)]
    for step in before[:-1]:
        saved[step].unlink(missing_ok=True)


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_weights(path: Path, model: nn.Module, about: Mapping[str, object], config: RunConfig) -> None:
    """Write the parameters and buffers of a model as safetensors, with a description in the header.

    Args:
        path: File to write.
        model: Model.
        about: Description, which the architecture and a digest are added to.
        config: Settings of the run.
    """
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    described = {**about, "architecture": describe(model, config), "digest": _digest(state)}
    with write_by_rename(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(state, str(temporary), metadata={"spurmix": json.dumps(described)})
        temporary.chmod(mode)  # safetensors creates files that only their owner may read


def read_weights(path: Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Load a file that `write_weights` wrote.

    Args:
        path: File of the weights.
        model: Model to load into. Default: a new model of the architecture in the header.

    Returns:
        The model and the description in the header.

    Raises:
        ValueError: If the file is missing, corrupt or of another model.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["spurmix"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        if _digest(state) != about["digest"]:
            raise ValueError("wrong digest")
        loaded = model if model is not None else rebuild(about["architecture"])
        loaded.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"cannot read {path} as weights of this model: {error}") from None
    return loaded, about
