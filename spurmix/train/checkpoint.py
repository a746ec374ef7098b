"""Checkpoints: safetensors and JSON, written by rename, verified on load. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
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


def save(folder: Path, step: int, run: dict[str, Any], state: dict[str, Any], keep: int) -> Path:
    """Write checkpoint `step` below `folder` and keep the newest `keep`."""
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, "state", tensors)
    save_file(tensors, str(temporary / TENSORS))
    (temporary / STATE).write_text(json.dumps(packed))
    files = {name: _digest(temporary / name) for name in (TENSORS, STATE)}
    (temporary / MANIFEST).write_text(json.dumps({"step": step, "run": run, "files": files}, indent=1))
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, digest in manifest["files"].items():
            if _digest(path / name) != digest:
                raise CheckpointError(f"{path / name} is damaged: its checksum differs from the manifest's")
        tensors = load_file(str(path / TENSORS))
        return manifest, _unpack(json.loads((path / STATE).read_text()), tensors)
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def load_latest(folder: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """State of the newest sound checkpoint below `folder`, or None where there is none at all.

    A damaged one is passed over with a warning. Raises CheckpointError where all are damaged, or where the newest
    sound one belongs to another run, saying what differs.
    """
    paths = sorted(folder.glob("step-*"), reverse=True)
    for path in paths:
        try:
            manifest, state = _read(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the checkpoint before it", RuntimeWarning, stacklevel=2)
            continue
        different = [k for k in run if manifest["run"].get(k) != run[k]]
        if different:
            listed = ", ".join(f"{k} ({manifest['run'].get(k)!r} there, {run[k]!r} here)" for k in different)
            raise CheckpointError(f"{path} belongs to another run; different: {listed}")
        return state
    if paths:
        raise CheckpointError(f"no checkpoint in {folder} is sound; newest: {paths[0]}")
    return None


def rng_state() -> dict[str, Any]:
    """State of torch's CPU generator."""
    return {"torch": torch.get_rng_state()}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` gave."""
    torch.set_rng_state(state["torch"])
