"""Checkpoints: safetensors and JSON, written by rename, verified on load. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that is damaged or belongs to another run."""


def check_writable(folder: Path) -> None:
    """Make `folder` and raise where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"output: cannot write into {folder} ({error.strerror or error})") from None


def identity(model: nn.Module, fingerprint: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What must agree for a run to be continued: sequence, model parameters and training settings."""
    shapes = json.dumps([(name, list(t.shape)) for name, t in model.state_dict().items()])
    return {**fingerprint, "model": hashlib.sha256(shapes.encode()).hexdigest()[:16], **settings}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: dict[str, Any]) -> str:
    """Checksum of what a manifest says besides."""
    said = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _pack(value: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors` and replaced by {"tensor": name}."""
    if isinstance(value, Tensor):
        tensors[prefix] = value.detach().cpu().clone().contiguous()
        return {"tensor": prefix}
    if isinstance(value, dict):
        return {"items": [[k, _pack(v, f"{prefix}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(v, f"{prefix}.{k}", tensors) for k, v in enumerate(value)]
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {k: _unpack(v, tensors) for k, v in value["items"]}
    return [_unpack(v, tensors) for v in value] if isinstance(value, list) else value


def synchronise(path: Path) -> None:
    """Have a file or folder on the disk before what follows: a rename may reach it before the contents do."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporaries of this process, and of processes that are no more."""
    for path in folder.glob(".step-*"):
        process = path.name.rsplit("-", 1)[-1]
        if process != str(os.getpid()) and process.isdecimal() and _lives(int(process)):
            continue
        shutil.rmtree(path, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def save(folder: Path, step: int, run: dict[str, Any], state: dict[str, Any], max_checkpoints: int) -> Path:
    """Write checkpoint `step` into `folder`, and keep the newest `max_checkpoints`.

    Checkpoints of later steps belong to a run that this one replaces. They are removed.

    Raises:
        CheckpointError: If the checkpoint cannot be written. Earlier checkpoints are unchanged.
    """
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}-{os.getpid()}"
    replaced = folder / f".step-{step:08d}-old-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
        tensors: dict[str, Tensor] = {}
        packed = _pack(state, "state", tensors)
        save_file(tensors, str(temporary / TENSORS))
        (temporary / STATE).write_text(json.dumps(packed))
        files = {name: _digest(temporary / name) for name in (TENSORS, STATE)}
        manifest: dict[str, Any] = {"step": step, "run": run, "files": files}
        manifest["checksum"] = _seal(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*(temporary / name for name in (TENSORS, STATE, MANIFEST)), temporary):
            synchronise(path)
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        synchronise(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{final} cannot be written ({error}); earlier checkpoints are as they were") from error
    finally:
        if replaced.exists() and not final.exists():
            replaced.rename(final)
        _remove_leftovers(folder)
    paths = sorted(folder.glob("step-*"))
    here = paths.index(final) + 1
    for other in (*paths[: max(0, here - max_checkpoints)], *paths[here:]):
        shutil.rmtree(other, ignore_errors=True)
    return final


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and state, after all checks."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if not isinstance(manifest, dict) or manifest.get("checksum") != _seal(manifest):
            raise CheckpointError(f"{path / MANIFEST} is damaged: its checksum differs")
        if manifest["files"].keys() != {TENSORS, STATE} or not isinstance(manifest["run"], dict):
            raise CheckpointError(f"{path / MANIFEST} is damaged: it does not say what it should")
        for name, digest in manifest["files"].items():
            if _digest(path / name) != digest:
                raise CheckpointError(f"{path / name} is damaged: its checksum differs from the manifest's")
        if path.name != f"step-{manifest['step']:08d}":
            raise CheckpointError(f"{path} is damaged: its manifest is of step {manifest['step']}")
        state = _unpack(json.loads((path / STATE).read_text()), load_file(str(path / TENSORS)))
        if not isinstance(state, dict):
            raise CheckpointError(f"{path / STATE} is damaged: it holds no state")
        return manifest, state
    except CheckpointError:
        raise
    except Exception as error:  # whatever readers raise at files that are not what they should be
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def load_latest(
    folder: Path, run: dict[str, Any], apply: Callable[[dict[str, Any]], object] = lambda state: None
) -> dict[str, Any] | None:
    """State of the newest valid checkpoint below `folder`, or None where there is none at all.

    Args:
        apply: takes the state over; where that fails, the checkpoint is damaged, and the one before is applied on top.

    A damaged one is passed over with a warning. Raises CheckpointError where all are damaged, or where the newest
    valid one belongs to another run, saying what differs.
    """
    paths = sorted(folder.glob("step-*"), reverse=True)
    for path in paths:
        try:
            manifest, state = _read(path)
            said = manifest["run"]
            different = [k for k in run if k not in said or said[k] != run[k]]
            if not different:
                _apply(path, apply, state)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the checkpoint before it", RuntimeWarning, stacklevel=2)
            continue
        if different:
            listed = ", ".join(f"{k} ({said.get(k)!r} there, {run[k]!r} here)" for k in different)
            raise CheckpointError(f"{path} belongs to another run; different: {listed}")
        return state
    if paths:
        raise CheckpointError(f"all checkpoints in {folder} are corrupt; newest: {paths[0]}")
    return None


def _apply(path: Path, apply: Callable[[dict[str, Any]], object], state: dict[str, Any]) -> None:
    try:
        apply(state)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: its state does not fit: {type(error).__name__}: {error}") from None


def rng_state() -> dict[str, Any]:
    """State of torch's generators: of the CPU, and of the current GPU where one is in use."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if used else None}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` gave, as far as this machine has the generators."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
