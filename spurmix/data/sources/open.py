"""Opens a packed dataset as a source, in the chosen tier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spurmix.data.dataset.format import DatasetError

if TYPE_CHECKING:
    import torch

    from spurmix.data.sources.arrays import Source as Source  # re-exported for `PackedDataset`


class ReadableDataset(Protocol):
    """The part of `PackedDataset` that sources use.

    Attributes:
        path: Folder of the dataset.
        kind: "images", "tokens" or "features".
        begin: First row of this split in the array files.
        provenance: How the dataset was made.
    """

    path: Path
    kind: str
    begin: int
    provenance: dict[str, Any]

    @property
    def array(self) -> NDArray[np.generic]:
        """Images or features, memory-mapped."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the examples."""
        ...

    def __len__(self) -> int: ...

    def memory_map(self, number: int) -> NDArray[Any]:
        """Return array file `number`, memory-mapped."""
        ...


def open_source(
    data: ReadableDataset,
    window: int | None,
    tier: str | None,
    device: torch.device | str | None,
    memory: int | None,
    reserve: int | None,
) -> Source:
    """Open a dataset as a source. `PackedDataset.source` documents the arguments."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ImportError("sources need the package 'torch': pip install 'spurmix[train]'") from error

    from spurmix.core import checks
    from spurmix.core.memory import available
    from spurmix.data.sources import arrays, tiers
    from spurmix.data.sources.tokens import TokenSource
    from spurmix.data.sources.windowed import DEFAULT_MEMORY, WindowedImages
    from spurmix.ops import validate

    for name, value in (("memory", memory), ("reserve", reserve)):
        if value is not None and checks.integer(value, name) < 0:
            raise ValueError(f"{name} must be 0 or more bytes, got {value}")
    window = None if window is None else checks.integer(window, "window")
    if window and data.kind != "images":
        raise ValueError(f"window is only for images, but this dataset contains {data.kind}")
    if window and tier not in (None, "auto", "disk"):
        raise ValueError(f'window requires tier "disk", got {tier!r}')
    requested = "disk" if window else tier if tier is not None else "cache"
    target = validate.device(device if device is not None else "cpu")
    free = None
    if target.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: {target} was requested, but CUDA is not available here")
        free = arrays.free_memory(target)[0]
    if reserve is None:
        reserve = free // 2 if free is not None and requested == "auto" else 0
    host = memory if memory is not None else available()
    chosen = tiers.choose_tier(tiers.Sizes(data.nbytes, host, free, reserve), requested, data.kind)
    source: Source
    if chosen.name == "disk":
        path = data.path / "images.npy"
        limit = memory if window else min(host // 2, DEFAULT_MEMORY)
        source = WindowedImages(path, data.begin, len(data), window or None, memory=limit)
    elif data.kind == "tokens":
        ids, offsets = data.memory_map(0), data.memory_map(1)
        offsets = np.asarray(offsets[data.begin : data.begin + len(data) + 1])
        try:
            source = TokenSource(ids[offsets[0] : offsets[-1]], offsets - offsets[0], **data.provenance["tokens"])
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{data.path}: invalid texts or settings of texts: {error}") from None
    elif data.kind == "features":
        source = arrays.FeatureSource(data.array)
    else:
        source = arrays.ImageSource(data.array)
    if chosen.name == "device":
        assert not isinstance(source, TokenSource)
        source = source.to(target)
    elif chosen.name == "pinned":
        assert isinstance(source, arrays.ImageSource)
        source = source.pinned()
    if tier is not None:
        source.tier = chosen
    return source
