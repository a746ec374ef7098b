"""Chooses where a dataset is read from: GPU memory, pinned memory, page cache or disk, whichever is fastest and fits."""

from __future__ import annotations

from dataclasses import dataclass

TIERS = {
    "device": "on the GPU, as bytes",
    "pinned": "in pinned memory of the host, read by the GPU's kernels",
    "cache": "mapped: the page cache holds the file",
    "disk": "read from the file a window of batches at a time",
}
"""Tiers, the fastest first."""
HAS = {"images": tuple(TIERS), "features": ("device", "cache"), "tokens": ("cache",)}
"""Tiers of each kind of dataset."""


@dataclass(frozen=True)
class Sizes:
    """Sizes in bytes that decide the tier.

    Attributes:
        data: Size of the examples.
        host: Memory that the process may use.
        device: Free memory of the GPU, or None if batches are made for the CPU.
        reserve: GPU memory that is left free for the model.
    """

    data: int
    host: int
    device: int | None = None
    reserve: int = 0


@dataclass(frozen=True)
class Tier:
    """A tier and the reason for choosing it."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


def shown(tier: Tier | None) -> str:
    """Return the part of a source's repr that names its tier."""
    return f"; {tier}" if tier is not None else ""


def choose(sizes: Sizes, wanted: str = "auto", kind: str = "images") -> Tier:
    """Choose the fastest tier that fits, or check the requested one.

    Args:
        sizes: Sizes of the data and of the memories.
        wanted: "auto" or one of `TIERS`.
        kind: Kind of the dataset: "images", "features" or "tokens".

    Returns:
        The tier.

    Raises:
        ValueError: If the tier is unknown, or not available for the dataset or device.
        MemoryError: If the requested tier is too small. The page cache never is: larger files work, but slowly.
    """
    if wanted not in ("auto", *TIERS):
        raise ValueError(f"tier must be auto, {', '.join(TIERS)}, got {wanted!r}")
    if wanted != "auto":
        if wanted not in HAS[kind]:
            raise ValueError(f"tier: a dataset of {kind} can be read from {' or '.join(HAS[kind])}, got {wanted!r}")
        if sizes.device is None and wanted in ("device", "pinned"):
            raise ValueError(f'tier {wanted!r} is for a GPU; name it, as in device="cuda"')
        obstacle = _obstacle(wanted, sizes)
        if obstacle and wanted != "cache":
            raise MemoryError(f"tier {wanted!r}: {obstacle}")
        return Tier(wanted, f"asked for; {obstacle}" if obstacle else "asked for")
    passed: list[str] = []
    for name in HAS[kind]:
        obstacle = _obstacle(name, sizes)
        if obstacle is None:
            return Tier(name, "; ".join([*passed, f"{TIERS[name]}, {_gib(sizes.data)}"]))
        if sizes.device is not None or name == "cache":
            passed.append(obstacle)
    return Tier("cache", "; ".join([*passed, f"memory-mapped, because {kind} cannot be read by windows"]))


def _obstacle(name: str, sizes: Sizes) -> str | None:
    """Why a tier cannot hold the data, or None."""
    data = f"the data take {_gib(sizes.data)}"
    if name == "device" and (sizes.device is None or sizes.data > sizes.device - sizes.reserve):
        left = f", {_gib(sizes.reserve)} of that kept for the model" if sizes.reserve else ""
        return f"{data}, the GPU has {_gib(sizes.device or 0)} free{left}"
    # What is pinned is never given back, so half of the memory stays for everything else.
    if name == "pinned" and (sizes.device is None or sizes.data > sizes.host // 2):
        return f"{data}, at most half of the {_gib(sizes.host)} of memory that may be used can be pinned"
    if name == "cache" and sizes.data > sizes.host:
        return f"{data}, {_gib(sizes.host)} of memory may be used"
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
