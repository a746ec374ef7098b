"""Checkpoints: safetensors and JSON files, written by rename and verified on load. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spurmix.core.files import FileError, check_form, read_json

MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint is corrupt, belongs to another run or cannot be written."""


def check_writable(folder: Path) -> None:
    """Create a folder. Raise a ValueError if no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"output: cannot write into {folder} ({error.strerror or error})") from None


def identity(model: nn.Module, fingerprint: dict[str, object], settings: dict[str, object]) -> dict[str, object]:
    """Return what must agree for a run to be resumed: sequence, model parameters and training settings."""
    shapes = json.dumps([(name, list(t.shape)) for name, t in model.state_dict().items()])
    return {**fingerprint, "model": hashlib.sha256(shapes.encode()).hexdigest()[:16], **settings}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: dict[str, object]) -> str:
    """Compute the checksum of the other entries of a manifest."""
    entries = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _pack(value: object, prefix: str, tensors: dict[str, Tensor]) -> object:
    """Convert a value to JSON types. Tensors are added to `tensors` and replaced by {"tensor": name}."""
    if isinstance(value, Tensor):
        tensors[prefix] = value.detach().cpu().clone().contiguous()
        return {"tensor": prefix}
    if isinstance(value, dict):
        return {"items": [[k, _pack(v, f"{prefix}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(v, f"{prefix}.{k}", tensors) for k, v in enumerate(value)]
    return value


def _unpack(value: object, tensors: dict[str, Tensor]) -> object:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {k: _unpack(v, tensors) for k, v in value["items"]}
    return [_unpack(v, tensors) for v in value] if isinstance(value, list) else value


def sync_to_disk(path: Path) -> None:
    """Wait until the disk has a file or folder. Otherwise a rename may reach the disk before the contents."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftover_folders(folder: Path, pattern: str = ".step-*") -> None:
    """Remove temporary folders of this process and of processes that have ended. Their names end in -<process id>."""
    for path in folder.glob(pattern):
        process = path.name.rsplit("-", 1)[-1]
        if process != str(os.getpid()) and process.isdecimal() and _is_running(int(process)):
            continue
        shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # a process of another user
    return True


def save(folder: Path, step: int, run: dict[str, object], state: dict[str, object], max_checkpoints: int) -> Path:
    """Write a checkpoint.

    Checkpoints of later steps belong to a run that this one replaces. They are removed.

    Args:
        folder: Folder of the checkpoints.
        step: Number of batches so far.
        run: What identifies the run, see `identity`.
        state: State to save: nested dicts and lists of tensors and JSON types.
        max_checkpoints: Maximum number of checkpoints to keep.

    Returns:
        Folder of the checkpoint.

    Raises:
        CheckpointError: If the checkpoint cannot be written. Earlier checkpoints are unchanged.
    """
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}-{os.getpid()}"
    replaced = folder / f".step-{step:08d}-old-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftover_folders(folder)
        temporary.mkdir()
        tensors: dict[str, Tensor] = {}
        packed = _pack(state, "state", tensors)
        save_file(tensors, str(temporary / TENSORS))
        (temporary / STATE).write_text(json.dumps(packed))
        files = {name: _digest(temporary / name) for name in (TENSORS, STATE)}
        manifest: dict[str, object] = {"step": step, "run": run, "files": files}
        manifest["checksum"] = _seal(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*(temporary / name for name in (TENSORS, STATE, MANIFEST)), temporary):
            sync_to_disk(path)
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        sync_to_disk(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {final} ({error}); earlier checkpoints are unchanged") from error
    finally:
        if replaced.exists() and not final.exists():
            replaced.rename(final)
        remove_leftover_folders(folder)
    paths = sorted(folder.glob("step-*"))
    end = paths.index(final) + 1
    for other in (*paths[: max(0, end - max_checkpoints)], *paths[end:]):
        shutil.rmtree(other, ignore_errors=True)
    return final


class _RunManifest(TypedDict):
    """Contents of `manifest.json`, without its checksum."""

    step: int
    run: dict[str, object]
    files: dict[str, str]


def _read(path: Path) -> tuple[_RunManifest, dict[str, object]]:
    """Read and check the manifest and the state of a checkpoint."""
    try:
        found = read_json(path / MANIFEST, dict[str, object])
        if found.get("checksum") != _seal(found):
            raise CheckpointError(f"{path / MANIFEST} is corrupt: wrong checksum")
        manifest = check_form(found, str(path / MANIFEST), _RunManifest)
        if manifest["files"].keys() != {TENSORS, STATE}:
            raise CheckpointError(f"{path / MANIFEST} is corrupt: unexpected entries")
        for name, digest in manifest["files"].items():
            if _digest(path / name) != digest:
                raise CheckpointError(f"{path / name} is corrupt: wrong checksum")
        if path.name != f"step-{manifest['step']:08d}":
            raise CheckpointError(f"{path} is corrupt: its manifest is of step {manifest['step']}")
        state = _unpack(read_json(path / STATE, object), load_file(str(path / TENSORS)))
        if not isinstance(state, dict):
            raise CheckpointError(f"{path / STATE} is corrupt: it must contain a dict")
        return manifest, state
    except CheckpointError:
        raise
    except FileError as error:
        raise CheckpointError(error) from None
    except Exception as error:  # readers of corrupt files raise errors of many types
        raise CheckpointError(f"{path} is corrupt: {type(error).__name__}: {error}") from None


def load_latest(
    folder: Path, run: dict[str, object], apply: Callable[[dict[str, object]], object] = lambda state: None
) -> dict[str, object] | None:
    """Load the newest valid checkpoint. A corrupt checkpoint causes a warning, and the one before it is tried.

    Args:
        folder: Folder of the checkpoints.
        run: What identifies the run, see `identity`.
        apply: Function that restores the state. If it fails, the checkpoint is corrupt.

    Returns:
        The state, or None if there are no checkpoints.

    Raises:
        CheckpointError: If all checkpoints are corrupt, or the newest valid one belongs to another run.
    """
    paths = sorted(folder.glob("step-*"), reverse=True)
    for path in paths:
        try:
            manifest, state = _read(path)
            saved = manifest["run"]
            # Checkpoints of earlier versions do not store later settings, which are None if they have no effect.
            different = [k for k in {**run, **saved} if saved.get(k) != run.get(k)]
            if not different:
                _apply(path, apply, state)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the checkpoint before it", RuntimeWarning, stacklevel=2)
            continue
        if different:
            listed = ", ".join(f"{k} ({saved.get(k)!r} in the checkpoint, {run.get(k)!r} given)" for k in different)
            raise CheckpointError(
                f"{path} belongs to another run; different: {listed}; choose another folder or the same settings"
            )
        return state
    if paths:
        raise CheckpointError(f"all checkpoints in {folder} are corrupt; delete the folder to start again")
    return None


def _apply(path: Path, apply: Callable[[dict[str, object]], object], state: dict[str, object]) -> None:
    try:
        apply(state)
    except Exception as error:  # load_state_dict of a model or optimizer raises errors of any type
        raise CheckpointError(
            f"{path} is corrupt: its state does not fit the run: {type(error).__name__}: {error}"
        ) from None


class RngState(TypedDict):
    """State of the random generators of PyTorch."""

    torch: Tensor
    cuda: Tensor | None


def rng_state() -> RngState:
    """Return the state of the random generators of the CPU and, if it is in use, of the current GPU."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if used else None}


def set_rng_state(state: RngState) -> None:
    """Restore the result of `rng_state`. The state of a GPU is ignored on a machine without one."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
