"""Losses of a training run: read from the device in blocks, written to `metrics.jsonl`, read again on resume."""

from __future__ import annotations

import json
import math
import os
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from spurmix.core.temporary import temporary_file
from spurmix.train.checkpoint import sync_to_disk

FILE = "metrics.jsonl"
LOSSES_PER_READ = 32
"""Number of batches whose losses are read from the device at once."""


def read_losses(path: Path, count: int) -> list[float]:
    """Read the losses of the first `count` batches from `metrics.jsonl`. NaN marks missing and corrupt lines."""
    losses = [math.nan] * count
    for step, (loss, _) in _read_lines(path).items():
        if step < count:
            losses[step] = loss
    return losses


def _read_lines(path: Path) -> dict[int, tuple[float, str]]:
    """The loss and the text of each valid line, by step."""
    lines: dict[int, tuple[float, str]] = {}
    text = path.read_text(errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
            step, loss = row["step"], row["loss"]
            if isinstance(step, int) and step >= 0:
                lines[step] = (math.nan if loss is None else float(loss), line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return lines


def _extend_checksum(checksum: int, loss: float) -> int:
    return zlib.crc32(struct.pack("<d", loss), checksum)


class LossLog:
    """Collects the loss of every batch, and writes `metrics.jsonl` with one line per batch.

    Losses stay on the device and are read in blocks, because each read waits for the device. A checkpoint holds the
    number of losses and their checksum. The losses themselves are only in `metrics.jsonl`, so that checkpoints do not
    grow.

    Args:
        folder: Folder of `metrics.jsonl`. None keeps losses in memory only.
        writes: Whether this process writes the file.

    Attributes:
        losses: Losses read so far, one per batch. NaN if a line is missing from the file of a resumed run.
    """

    def __init__(self, folder: Path | None, writes: bool) -> None:
        self.losses: list[float] = []
        self._path = folder / FILE if folder is not None else None
        self._writes = writes and folder is not None
        self._file: IO[str] | None = None
        self._checksum = 0
        self._values: list[Tensor] = []
        self._rows: list[dict[str, float]] = []
        self._began = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint holds: the number of losses and their checksum."""
        return {"count": len(self.losses), "crc32": self._checksum}

    def load_state_dict(self, state: object, count: int) -> None:
        """Read the losses of the first `count` batches from `metrics.jsonl`. Missing losses become NaN.

        Args:
            state: The result of `state_dict`, or the list of losses in a checkpoint of version 0.1.0.
            count: Number of batches of the checkpoint.

        Raises:
            ValueError: If the state is not that of `count` batches.
            TypeError: If the state has the wrong type.
        """
        if isinstance(state, list):  # version 0.1.0 stored all losses in the checkpoint
            losses = [float(loss) for loss in state]
            checksum = 0
            for loss in losses:
                checksum = _extend_checksum(checksum, loss)
            recorded = len(losses)
        else:
            # Another type than a dict raises TypeError.
            recorded, checksum = (int(state[key]) for key in ("count", "crc32"))  # type: ignore[index]
            losses = read_losses(self._path, recorded) if self._path is not None else []
        if recorded != count:
            raise ValueError(f"{recorded} losses of {count} batches")
        self.losses, self._checksum = losses, checksum

    def warn_if_damaged(self) -> None:
        """Warn if the losses read from the file are not those of the checkpoint."""
        if not self._writes:
            return
        missing = sum(map(math.isnan, self.losses))
        checksum = 0
        for loss in self.losses:
            checksum = _extend_checksum(checksum, loss)
        if missing:
            problem = f"{missing} of {len(self.losses)} losses are missing or corrupt and are reported as NaN"
        elif checksum != self._checksum:
            problem = "losses differ from those of the run and are reported as they are in the file"
        else:
            return
        warnings.warn(f"{self._path}: {problem}; training resumes exactly", RuntimeWarning, stacklevel=2)

    def __enter__(self) -> LossLog:
        self._began = time.perf_counter()
        if self._writes and self._path is not None:
            self._rewrite(self._path)
            self._file = self._path.open("a", buffering=1)
        return self

    def _rewrite(self, path: Path) -> None:
        """Keep the lines of the losses so far, replace corrupt lines, and drop the lines of later batches."""
        lines = _read_lines(path)
        rows = []
        for step, loss in enumerate(self.losses):
            found = lines.get(step)
            if found is not None and not math.isnan(found[0]):
                rows.append(found[1])
            else:
                rows.append(json.dumps({"step": step, "loss": None if math.isnan(loss) else loss}))
        with temporary_file(path) as temporary:
            temporary.write_text("".join(f"{row}\n" for row in rows))
            sync_to_disk(temporary)
            temporary.replace(path)

    def add(self, step: int, loss: Tensor, rate: float, examples: int) -> None:
        """Record the loss of a batch. It is read from the device at most `LOSSES_PER_READ` batches later."""
        seconds = round(time.perf_counter() - self._began, 4)
        self._values.append(loss)
        self._rows.append({"step": step, "learning_rate": rate, "examples": examples, "seconds": seconds})
        if len(self._rows) >= LOSSES_PER_READ:
            self.flush()

    def flush(self, *, to_disk: bool = False) -> None:
        """Read and write the losses recorded so far.

        Args:
            to_disk: Whether to wait until the disk has the lines. A checkpoint must not be newer than its losses.

        Raises:
            ValueError: If a loss is not finite.
        """
        if self._rows:
            self._read()
        if to_disk and self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def _read(self) -> None:
        values: list[float] = torch.stack(self._values).tolist()
        rows, self._values, self._rows = self._rows, [], []
        for row, value in zip(rows, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"the loss is {value} at step {row['step']}; lower the learning rate or check the data"
                )
            self.losses.append(value)
            self._checksum = _extend_checksum(self._checksum, value)
            if self._file is not None:
                line = {"step": row["step"], "loss": value, **row}
                self._file.write(json.dumps(line) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, (Exception, KeyboardInterrupt)):
                self.flush()
        except Exception:
            if kind is None:
                raise  # otherwise the first error is the one to report
        finally:
            if self._file is not None:
                self._file.close()
