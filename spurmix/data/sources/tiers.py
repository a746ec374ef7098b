"""Chooses the memory tier a dataset is read from: GPU memory, pinned memory, page cache or disk. The fastest that fits."""

from __future__ import annotations

from dataclasses import dataclass

TIERS = {
    "device": "in GPU memory, as bytes",
    "pinned": "in pinned host memory, which the GPU reads",
    "cache": "memory-mapped; the file fits into the page cache",
    "disk": "read from the file by windows of batches",
}
"""Description of each tier, from the fastest to the slowest."""
TIERS_OF_KIND = {"images": tuple(TIERS), "features": ("device", "cache"), "tokens": ("cache",)}
"""Tiers that each kind of dataset supports."""


@dataclass(frozen=True)
class Sizes:
    """Sizes in bytes that decide the tier.

    Attributes:
        data: Size of the examples.
        host: Host memory that the process may use.
        device: Free memory of the GPU, or None if batches are made for the CPU.
        reserve: GPU memory to leave free for the model.
    """

    data: int
    host: int
    device: int | None = None
    reserve: int = 0


@dataclass(frozen=True)
class Tier:
    """A tier and the reason for its choice.

    Attributes:
        name: Name of the tier, a key of `TIERS`.
        why: Reason for the choice.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


def repr_suffix(tier: Tier | None) -> str:
    """Return the end of a source's repr, which names its tier."""
    return f"; {tier}" if tier is not None else ""


def choose_tier(sizes: Sizes, requested: str = "auto", kind: str = "images") -> Tier:
    """Choose the fastest tier that fits, or check the requested one.

    Args:
        sizes: Sizes of the data and of the memories.
        requested: "auto" or one of `TIERS`.
        kind: Kind of the dataset: "images", "features" or "tokens".

    Returns:
        The tier.

    Raises:
        ValueError: If the tier is unknown, or not available for the dataset or device.
        MemoryError: If the requested tier is too small. "cache" never is: a file larger than memory works, but slowly.
    """
    if requested not in ("auto", *TIERS):
        raise ValueError(f"tier must be auto, {', '.join(TIERS)}, got {requested!r}")
    supported = TIERS_OF_KIND[kind]
    if requested != "auto":
        if requested not in supported:
            raise ValueError(f"tier must be {' or '.join(supported)} for a dataset of {kind}, got {requested!r}")
        if sizes.device is None and requested in ("device", "pinned"):
            raise ValueError(f'tier {requested!r} requires a GPU; pass its name, as in device="cuda"')
        obstacle = _obstacle(requested, sizes)
        if obstacle and requested != "cache":
            raise MemoryError(f"tier {requested!r} does not fit: {obstacle}")
        return Tier(requested, f"requested; {obstacle}" if obstacle else "requested")
    skipped: list[str] = []
    for name in supported:
        obstacle = _obstacle(name, sizes)
        if obstacle is None:
            return Tier(name, "; ".join([*skipped, f"{TIERS[name]}, {_gib(sizes.data)}"]))
        if sizes.device is not None or name == "cache":
            skipped.append(obstacle)
    return Tier("cache", "; ".join([*skipped, f"memory-mapped, because {kind} cannot be read by windows"]))


def _obstacle(name: str, sizes: Sizes) -> str | None:
    """Explain why a tier cannot hold the data, or return None."""
    data = f"the data take {_gib(sizes.data)}"
    if name == "device" and (sizes.device is None or sizes.data > sizes.device - sizes.reserve):
        reserved = f", {_gib(sizes.reserve)} of it reserved for the model" if sizes.reserve else ""
        return f"{data}, the GPU has {_gib(sizes.device or 0)} free{reserved}"
    # Pinned memory is never swapped out, so half of the memory is left for everything else.
    if name == "pinned" and (sizes.device is None or sizes.data > sizes.host // 2):
        return f"{data}, at most half of the {_gib(sizes.host)} of available memory can be pinned"
    if name == "cache" and sizes.data > sizes.host:
        return f"{data}, {_gib(sizes.host)} of memory are available"
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
