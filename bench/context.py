"""What a case needs to know about the run."""

from __future__ import annotations

from dataclasses import dataclass

from bench.peers.client import Peers


@dataclass
class Context:
    threads: int
    quick: bool
    peers: Peers
    libraries: dict[str, str]  # installed peers and their versions

    def has(self, *names: str) -> bool:
        return all(name in self.libraries for name in names)
