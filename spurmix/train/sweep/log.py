"""Results of trials as JSON lines, so that an interrupted comparison resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NotRequired, TypedDict

from spurmix.core.files import FileError, parse_json, read_bytes
from spurmix.core.limits import MAX_JSON_BYTES
from spurmix.train.runs.files import write_text


class TrialRow(TypedDict):
    """Line of a log: a trial on a development seed, or a result on a reported seed.

    Attributes:
        protocol: Digest of everything that the result depends on. Lines of another digest are not read.
        phase: "trial" or "result".
        setting: Name of the data.
        known: Number of attributed examples per group, or "all".
        method: Name of the method.
        trial: Number of the trial.
        seed: Random seed.
        values: Values of the hyperparameters.
        validation: Worst-group accuracy on the validation split. None if the method failed.
        error: Why the method failed.
        worst: Worst-group accuracy on the test split. Only in results, like all entries below.
        average: Average accuracy on the test split.
        groups: Number of correct and of all predictions in each group of the test split.
        residual: Correlation that the policy leaves. None if it cannot be determined.
        residual_given_lam: The same given lam.
        seconds: Duration.
    """

    protocol: str
    phase: str
    setting: str
    known: int | str
    method: str
    trial: int
    seed: int
    values: dict[str, float]
    validation: float | None
    error: NotRequired[str]
    worst: NotRequired[float]
    average: NotRequired[float]
    groups: NotRequired[list[list[int]]]
    residual: NotRequired[float | None]
    residual_given_lam: NotRequired[float | None]
    seconds: NotRequired[float]


Key = tuple[str, str, str, str, int, int]


def _key(row: TrialRow) -> Key:
    return row["phase"], row["setting"], str(row["known"]), row["method"], row["trial"], row["seed"]


class SweepLog:
    """A file of results.

    Args:
        path: The file. It is created with the first result. None keeps results in memory only.
        protocol: Digest of everything that the results depend on. Lines of another digest stay in the file, unused.

    Raises:
        ValueError: If a line other than the last is damaged. An incomplete last line is removed.
    """

    def __init__(self, path: Path | None, protocol: str) -> None:
        self._path, self.protocol = path, protocol
        self._rows: dict[Key, TrialRow] = {}
        if path is None or not path.exists():
            return
        lines = read_bytes(path, MAX_JSON_BYTES).decode("utf-8", "replace").splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                row = parse_json(line, f"{path}, line {number},", TrialRow)
            except FileError as error:
                if number < len(lines) or line.endswith("\n"):
                    raise ValueError(f"{error}; remove this line, then resume") from None
                write_text(path, "".join(lines[:-1]))  # the process was killed while it wrote
                break
            if row["protocol"] == protocol:
                self._rows[_key(row)] = row

    def find(self, phase: str, setting: str, known: int | str, method: str, trial: int, seed: int) -> TrialRow | None:
        """Return a result, or None if it is not in the log."""
        return self._rows.get((phase, setting, str(known), method, trial, seed))

    def add(self, row: TrialRow) -> TrialRow:
        """Append a result to the file, and return it."""
        values = {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        self._rows[_key(row)] = row
        return row
