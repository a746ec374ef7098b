"""Host memory for tensors: huge pages where the system provides them, pinned on request."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from spurmix.core import memory


def host_tensor(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False, pin_memory: bool = False
) -> Tensor:
    """Allocate an uninitialized CPU tensor that is meant to be reused.

    Large tensors are page-aligned and advised for huge pages.

    Args:
        shape: Shape of the tensor.
        dtype: Data type of the tensor.
        channels_last: Use the channels-last memory format. The shape must have four dimensions.
        pin_memory: Pin the memory for transfers to a GPU.

    Returns:
        The tensor.

    Raises:
        ValueError: If memory is to be pinned and CUDA is not available or cannot pin it.
        MemoryError: If the system has too little memory.
    """
    if pin_memory:
        check_pinning()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    # CUDA registers whole pages, each only once, so pinned tensors of any size need separate pages.
    if (size < memory.HUGE_PAGE and not (pin_memory and size)) or not memory.HAS_PAGES:
        return torch.empty(shape, dtype=dtype, memory_format=layout, pin_memory=pin_memory)
    array = memory.pages(size)
    if pin_memory:
        _register(array.ctypes.data, size)
        # The tensor keeps the array alive, so this runs before the pages are unmapped. At exit the driver cleans up.
        weakref.finalize(array, _unregister, array.ctypes.data).atexit = False
    flat = torch.from_numpy(array).view(dtype)
    if channels_last:
        b, c, h, w = shape
        return flat.view(b, h, w, c).permute(0, 3, 1, 2)
    return flat.view(shape)


def check_pinning() -> None:
    """Check that memory can be pinned on this machine.

    Raises:
        ValueError: If CUDA is not available.
    """
    if not torch.cuda.is_available():
        raise ValueError("pin_memory=True needs CUDA, which is not available here")


def _register(address: int, size: int) -> None:
    code = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
    if code != 0:
        raise ValueError(f"pin_memory=True: CUDA could not pin {size:,} bytes (error {code}; see `ulimit -l`)")


def _unregister(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)
