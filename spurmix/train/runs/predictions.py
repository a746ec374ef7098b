"""Predicted classes of a run on its held-out splits, in `predictions.safetensors`, from which runs are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from spurmix.core.files import FileError, parse_json
from spurmix.train.runs.files import MODEL, PREDICTIONS, sealed, tensors_digest, write_by_rename


class PredictionsHeader(TypedDict):
    """Description in the header of `predictions.safetensors`.

    Attributes:
        splits: Names of the splits. Tensor "k" has the predictions on split k.
        dataset: Digest of the dataset.
        weights: Digest of the weights that predicted.
        digest: Checksum of the predictions.
        checksum: Checksum of the other entries.
    """

    splits: list[str]
    dataset: str
    weights: str
    digest: str
    checksum: str


def write_predictions(folder: Path, predictions: Mapping[str, NDArray[np.int32]], dataset: str) -> None:
    """Write the predictions of a finished run.

    Args:
        folder: Folder of the run.
        predictions: Predicted classes of each split, int32 `[N]`.
        dataset: Digest of the dataset.
    """
    from safetensors.torch import save_file

    tensors = {str(k): torch.from_numpy(values) for k, values in enumerate(predictions.values())}
    header = sealed(
        {
            "splits": list(predictions),
            "dataset": dataset,
            "weights": _weights_digest(folder),
            "digest": tensors_digest(tensors),
        }
    )
    with write_by_rename(folder / PREDICTIONS) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, str(temporary), metadata={"spurmix": json.dumps(header)})
        temporary.chmod(mode)  # safetensors creates files that only their owner may read


def _weights_digest(folder: Path) -> str:
    """Digest of the weights of a finished run."""
    with safe_open(str(folder / MODEL), framework="pt") as file:
        about: dict[str, object] = json.loads(file.metadata()["spurmix"])
    return str(about["digest"])


def read_predictions(folder: Path, split: str, dataset: str) -> NDArray[np.int32] | None:
    """Read the predictions on a split.

    Args:
        folder: Folder of a finished run.
        split: Name of the split.
        dataset: Digest of the dataset.

    Returns:
        Predicted classes, int32 `[N]`. None if the file does not exist, or is of other splits, data or weights.

    Raises:
        FileError: If the file is damaged.
    """
    path = folder / PREDICTIONS
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            header = parse_json((file.metadata() or {}).get("spurmix", "null"), str(path), PredictionsHeader)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (OSError, SafetensorError) as error:
        raise FileError(f"cannot read {path}: {error}; delete it, so that the predictions are computed again") from None
    names = [str(k) for k in range(len(header["splits"]))]
    seal = sealed({name: value for name, value in header.items() if name != "checksum"})
    if seal["checksum"] != header["checksum"] or sorted(tensors) != sorted(names):
        raise FileError(f"{path} is damaged: the header does not match its checksum; delete the file")
    if tensors_digest(tensors) != header["digest"]:
        raise FileError(f"{path} is damaged: the predictions do not match their checksum; delete the file")
    same = header["dataset"] == dataset and header["weights"] == _weights_digest(folder)
    if not same or split not in header["splits"]:
        return None
    found: NDArray[np.int32] = tensors[names[header["splits"].index(split)]].numpy()
    return found
