"""Client of the process that runs other libraries in `.venv-peers`. Messages are JSON lines."""

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
    """Process that runs other libraries. Arrays are exchanged as .npy files.

    Args:
        threads: Number of threads of the process.
        python: Python interpreter of the virtual environment.
    """

    def __init__(self, threads: int, python: Path = PYTHON) -> None:
        self._threads, self._python = threads, python
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="spurmix-bench-")
        self.folder = Path(self._folder.name)

    @property
    def installed(self) -> bool:
        """Whether the virtual environment exists."""
        return self._python.exists()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return its answer.

        Args:
            **request: Fields of the message. See `bench/peers/worker.py`.

        Returns:
            Fields of the answer.

        Raises:
            RuntimeError: If the request fails or the process ends.
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
            raise RuntimeError("the process of .venv-peers ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def versions(self) -> dict[str, str]:
        """Return the installed libraries and their versions."""
        return self.ask(command="versions")["versions"] if self.installed else {}

    def share(self, **arrays: np.ndarray[Any, Any]) -> None:
        """Write arrays by name for the process, which drops the state of earlier arrays."""
        self.ask(command="forget")
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)

    def contender(self, name: str, peer: str, note: str = "", compares: bool = False) -> Contender:
        """Return a contender that runs on the shared arrays.

        Args:
            name: Name in the table.
            peer: Key of `PEERS` in bench/peers/work.py.
            note: Remark for the reader.
            compares: Whether the result is comparable with that of spurmix. If False, it must only be finite.

        Returns:
            The contender.
        """

        def run() -> Any:
            self.ask(command="setup", peer=peer, folder=str(self.folder))
            self.ask(command="run", peer=peer)
            if not compares:
                self.ask(command="check", peer=peer)
                return None
            self.ask(command="save", peer=peer, folder=str(self.folder))
            return np.load(self.folder / "result.npy", allow_pickle=False)

        return Contender(name, run, note=note, seconds=lambda: float(self.ask(command="run", peer=peer)["seconds"]))

    def close(self) -> None:
        """Kill the process and remove the arrays. Closing its input is not enough if a forked process shares it."""
        if self._process is not None:
            with self._process as process:
                process.kill()
            self._process = None
        self._folder.cleanup()
