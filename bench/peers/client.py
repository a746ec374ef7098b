"""Talks to the worker that runs peers in `.venv-peers`: JSON lines, so that its runs take turns with ours."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.registry import Contender

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = ROOT / ".venv-peers" / "bin" / "python"


class Peers:
    """The worker process. Inputs travel as .npy files, which it maps; outputs come back the same way."""

    def __init__(self, threads: int, python: Path = PYTHON) -> None:
        self._threads, self._python = threads, python
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="spurmix-bench-")
        self.folder = Path(self._folder.name)

    @property
    def installed(self) -> bool:
        return self._python.exists()

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer.

        Raises:
            RuntimeError: with the worker's message.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [str(self._python), "-m", "bench.peers.worker", str(self._threads)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process = None
            raise RuntimeError("the peers' process ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def versions(self) -> dict[str, str]:
        return self.ask(command="versions")["versions"] if self.installed else {}

    def share(self, **arrays: np.ndarray[Any, Any]) -> None:
        """Write arrays for the worker, by name; what it had set up on earlier ones is dropped."""
        self.ask(command="forget")
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)

    def contender(self, name: str, peer: str, note: str = "", compares: bool = False) -> Contender:
        """A contender that runs `peer` of bench/peers/work.py on the shared arrays."""

        def run() -> Any:
            self.ask(command="setup", peer=peer, folder=str(self.folder))
            self.ask(command="run", peer=peer)
            if not compares:
                self.ask(command="check", peer=peer)
                return None
            self.ask(command="save", peer=peer, folder=str(self.folder))
            return np.load(self.folder / "result.npy")

        return Contender(name, run, note=note, seconds=lambda: float(self.ask(command="run", peer=peer)["seconds"]))

    def close(self) -> None:
        """End the worker: it has nothing to lose. Closing its input would not do while a forked process holds that too."""
        if self._process is not None:
            with self._process as process:
                process.kill()
            self._process = None
        self._folder.cleanup()
