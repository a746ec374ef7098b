"""Where a dataset's bytes are read from: the fastest that holds them of device memory, pinned memory, page cache, disk."""

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
    """What decides, in bytes.

    Attributes:
        data: the examples. host: memory the process may use.
        device: free on the GPU, None where batches are wanted on the CPU. room: of that, what is left for the model.
    """

    data: int
    host: int
    device: int | None = None
    room: int = 0


@dataclass(frozen=True)
class Tier:
    """A tier and why it was taken."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


def shown(tier: Tier | None) -> str:
    """What a source's repr says of its tier."""
    return f"; {tier}" if tier is not None else ""


def choose(sizes: Sizes, wanted: str = "auto", kind: str = "images") -> Tier:
    """The fastest tier that fits, or the `wanted` one.

    Args:
        wanted: "auto" or one of `TIERS`. kind: of the dataset: "images", "features" or "tokens".

    Raises:
        ValueError: for an unknown tier, or one that the dataset or the device does not have.
        MemoryError: for a wanted tier that is too small; of these, the page cache is never: a map larger than the memory
            works, slowly.
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
    return Tier("cache", "; ".join([*passed, f"mapped all the same, as {kind} are not read by windows"]))


def _obstacle(name: str, sizes: Sizes) -> str | None:
    """Why a tier cannot hold the data, or None."""
    data = f"the data take {_gib(sizes.data)}"
    if name == "device" and (sizes.device is None or sizes.data > sizes.device - sizes.room):
        left = f", {_gib(sizes.room)} of that kept for the model" if sizes.room else ""
        return f"{data}, the GPU has {_gib(sizes.device or 0)} free{left}"
    # What is pinned is never given back, so half of the memory stays for everything else.
    if name == "pinned" and (sizes.device is None or sizes.data > sizes.host // 2):
        return f"{data}, at most half of the {_gib(sizes.host)} of memory that may be used can be pinned"
    if name == "cache" and sizes.data > sizes.host:
        return f"{data}, {_gib(sizes.host)} of memory may be used"
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
