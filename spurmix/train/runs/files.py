"""Files in the folder of a run: locked by one process, written by rename, checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NotRequired, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spurmix.core.files import FileError, parse_json, read_json, read_json_lines
from spurmix.core.memory import available
from spurmix.core.names import shown
from spurmix.core.temporary import sweep, temporary_file
from spurmix.train.checkpoint import sync_to_disk
from spurmix.train.runs.config import MODELS, RunConfig
from spurmix.train.runs.model import describe, rebuild

CONFIG, ABOUT, EVALUATIONS, MODEL = "config.toml", "run.json", "evaluations.jsonl", "model.safetensors"
CHECKPOINTS, PREDICTIONS = "checkpoints", "predictions.safetensors"


class EvaluationRow(TypedDict):
    """Line of `evaluations.jsonl`."""

    step: int
    worst_group: float
    average: float
    adjusted_average: float
    worst_name: str
    checksum: NotRequired[str]


class Architecture(TypedDict):
    """Architecture of a model, for `rebuild`. Further entries depend on the model."""

    model: str


class RunDescription(TypedDict):
    """Contents of `run.json` and part of the header of `model.safetensors`.

    Attributes:
        dataset: Digest of the dataset.
        shape: Shape of an example.
        classes: Names of the classes.
        groups: Label, attribute and size of each group of the training split.
        architecture: Architecture of the model, for `rebuild`.
        attribute_names: Names of the values of the attribute.
        step: Number of batches after which the weights were saved. Only in `model.safetensors`.
        digest: Checksum of the weights. Only in `model.safetensors`.
        checksum: Checksum of the other entries. Version 0.1.0 has none.
    """

    dataset: str
    shape: list[int]
    classes: list[str]
    groups: list[list[int]]
    architecture: Architecture
    attribute_names: NotRequired[list[str] | None]
    step: NotRequired[int]
    digest: NotRequired[str]
    checksum: NotRequired[str]


class WeightsHeader(TypedDict):
    """Entries that every header of weights has."""

    architecture: Architecture
    digest: str
    checksum: NotRequired[str]
    worst_group: NotRequired[float]


def sealed(entries: Mapping[str, object], before: str = "") -> dict[str, object]:
    """Return entries with a checksum of all of them, and of `before`."""
    content = {name: value for name, value in entries.items() if name != "checksum"}
    text = json.dumps([before, content], sort_keys=True)
    return {**content, "checksum": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


_DESCRIPTION = frozenset({"dataset", "shape", "classes", "groups", "architecture"})
_SCORES = frozenset({"step", "worst_group", "average", "adjusted_average"})
_WITHOUT_CHECKSUM = (
    _DESCRIPTION,
    _DESCRIPTION | {"step", "digest"},
    _SCORES | {"architecture", "digest"},
    _SCORES | {"worst_name"},
)
"""Keys that version 0.1.0 wrote to `run.json`, the two kinds of weights, and `evaluations.jsonl`."""
_KEYS = frozenset().union(*_WITHOUT_CHECKSUM, {"attribute_names", "checksum"})


def _check_seal(entries: Mapping[str, object], name: str, before: str = "") -> None:
    """Check keys and checksum of entries. A checksum is required, except with exactly the keys that 0.1.0 wrote.

    Otherwise a damaged key "checksum" would turn the check off.
    """
    unknown = sorted(entries.keys() - _KEYS)
    if unknown:
        raise FileError(f"{name} is damaged, or a newer version of spurmix wrote it: unknown key {shown(unknown[0])}")
    if "checksum" in entries:
        if sealed(entries, before)["checksum"] != entries["checksum"]:
            raise FileError(f"{name} is damaged: the entries do not match their checksum")
    elif before or entries.keys() not in _WITHOUT_CHECKSUM:
        raise FileError(f"{name} is damaged: it has no checksum")


def check_description(about: RunDescription, name: str) -> None:
    """Check the ranges of a description, and that the groups fit into memory.

    Args:
        about: The description.
        name: Name of the file, for errors.

    Raises:
        FileError: If a value is out of range.
    """
    numbers = [*about["shape"], about.get("step", 0), *(n for group in about["groups"] for n in group)]
    if not about["classes"]:
        raise FileError(f"{name} is damaged: it has no classes")
    if not about["shape"] and about["architecture"]["model"] not in MODELS["tokens"]:
        raise FileError(f"{name} is damaged: the shape is empty, which only models of texts allow")
    if not about["groups"] or any(len(group) != 3 or group[2] < 1 for group in about["groups"]):
        raise FileError(f"{name} is damaged: groups must be [label, attribute, size], the size 1 or more")
    if min(numbers) < -1 or max(numbers) >= 2**63 or about.get("step", 0) < 0:
        raise FileError(f"{name} is damaged: numbers must be in [-1, 2^63), got {min(numbers)} to {max(numbers)}")
    examples = sum(group[2] for group in about["groups"])
    if 32 * examples > available():
        raise FileError(f"{name}: its groups have {examples:,} training examples, more than fit into memory")


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
    sweep(folder)
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
        folder / PREDICTIONS,
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
    try:
        with temporary_file(path) as temporary:
            yield temporary
            sync_to_disk(temporary)
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}") from error


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
    about = read_json(path, RunDescription)
    _check_seal(about, str(path))
    check_description(about, str(path))
    return {**about}


def write_about(folder: Path, about: Mapping[str, object]) -> None:
    """Write `run.json`."""
    write_text(folder / ABOUT, json.dumps(sealed(about), indent=1))


def read_evaluations(folder: Path) -> list[EvaluationRow]:
    """Read `evaluations.jsonl`.

    Args:
        folder: Folder of the run.

    Returns:
        The rows, [] if the file does not exist.

    Raises:
        ValueError: If a line is corrupt.
    """
    path, rows, before = folder / EVALUATIONS, list[EvaluationRow](), ""
    if not path.exists():
        return rows
    try:
        for number, row in enumerate(read_json_lines(path, EvaluationRow), 1):
            _check_seal(row, f"{path}, line {number},", before)  # each checksum includes that of the line before it
            before = row.pop("checksum", "")
            rows.append(row)
    except FileError as error:
        raise ValueError(f"{error}; remove this line and all after it, then resume") from None
    return rows


def write_evaluations(folder: Path, rows: Iterable[EvaluationRow]) -> None:
    """Write `evaluations.jsonl`. The checksum of each line includes that of the line before it."""
    lines, before = [], ""
    for row in rows:
        line = sealed(row, before)
        before = str(line["checksum"])
        lines.append(json.dumps(line) + "\n")
    write_text(folder / EVALUATIONS, "".join(lines))


def best_path(folder: Path, step: int) -> Path:
    """File of the best weights so far, those after `step` batches."""
    return folder / f"best-{step:08d}.safetensors"


def bests(folder: Path) -> dict[int, Path]:
    """Find the files of best weights, by step in ascending order."""
    found = {int(p.stem.removeprefix("best-")): p for p in folder.glob("best-*.safetensors")}
    return dict(sorted(found.items()))


def highest_before(folder: Path, rows: Iterable[EvaluationRow], step: int) -> float:
    """Find the highest worst-group accuracy before a batch.

    Args:
        folder: Folder of the run.
        rows: Evaluations before `step`. Lines of the file may have been removed.
        step: Number of batches.

    Returns:
        Highest accuracy of the rows and of the best weights, -1 if there is none.

    Raises:
        ValueError: If the best weights are corrupt.
    """
    highest = max((row["worst_group"] for row in rows), default=-1.0)
    earlier = [path for saved, path in bests(folder).items() if saved < step]
    for path in earlier[-1:]:
        try:
            with safe_open(str(path), framework="pt") as file:
                found = _header(file).get("worst_group", -1.0)
        except (OSError, SafetensorError, FileError) as error:
            raise ValueError(f"cannot read {path}: {error}; remove it to train without it") from None
        highest = max(highest, found)
    return highest


def prune_bests(folder: Path) -> None:
    """Remove best weights that no run resumed from one of the checkpoints can need."""
    checkpoints = [int(p.name.removeprefix("step-")) for p in (folder / CHECKPOINTS).glob("step-*")]
    saved = bests(folder)
    before = [step for step in saved if step <= min(checkpoints, default=0)]
    for step in before[:-1]:
        saved[step].unlink(missing_ok=True)


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """Compute a checksum of names, types, shapes and values of tensors."""
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
    described = sealed({**about, "architecture": describe(model, config), "digest": tensors_digest(state)})
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
    try:
        with safe_open(str(path), framework="pt") as file:
            header = _header(file)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        if tensors_digest(state) != header["digest"]:
            raise FileError("wrong digest of the weights")
        if model is None:
            with torch.device("meta"):  # sizes of a damaged header may exceed the memory
                _check_shapes(rebuild({**header["architecture"]}), state)
        loaded = model if model is not None else rebuild({**header["architecture"]})
        loaded.load_state_dict(state)
    except Exception as error:  # libraries raise errors of many types for corrupt files
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ValueError(f"cannot read {path} as weights of this model: {reason}") from None
    return loaded, dict(header)


def _header(file: safe_open) -> WeightsHeader:
    """Read and check the description in the header of weights."""
    text = (file.metadata() or {}).get("spurmix")
    if text is None:
        raise FileError("the header has no entry of spurmix")
    header = parse_json(text, "the header", WeightsHeader)
    _check_seal(header, "the header")
    return header


def read_finished(path: Path, model: nn.Module | None = None) -> tuple[nn.Module, RunDescription]:
    """Load the weights of a finished run, and check its description.

    Args:
        path: File of the weights.
        model: Model to load into. Default: a new model of the architecture in the header.

    Returns:
        The model and the description.

    Raises:
        ValueError: If the file is missing, corrupt or of another model.
    """
    loaded, header = read_weights(path, model)
    about = parse_json(json.dumps(header), f"{path}: the header", RunDescription)
    check_description(about, f"{path}: the header")
    if "step" not in about:
        raise FileError(f"{path}: the header is damaged: it has no 'step'")
    return loaded, about


def _check_shapes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that tensors have the names and shapes of a model."""
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in state.items()}
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if different:
        raise FileError(f"its architecture does not have these weights, for example {different[0]}")
