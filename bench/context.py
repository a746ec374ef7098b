"""Settings of a run that cases depend on."""

from __future__ import annotations

from dataclasses import dataclass

from bench.peers.client import Peers


@dataclass
class Context:
    """Settings of a run.

    Attributes:
        threads: Number of threads of each contender.
        quick: Whether this is a `--quick` run.
        peers: Process that runs other libraries.
        libraries: Installed libraries and their versions.
    """

    threads: int
    quick: bool
    peers: Peers
    libraries: dict[str, str]

    def has(self, *names: str) -> bool:
        """Return whether all of the libraries are installed."""
        return all(name in self.libraries for name in names)
