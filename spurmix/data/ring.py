"""Ring memory: batch buffers that are allocated once, on huge pages where the system gives them, and reused.

A fresh buffer per batch costs several times the fused kernel: every page of it faults when first written.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from spurmix.core import memory
from spurmix.data.batch import Batch


def buffer(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False, pin_memory: bool = False) -> Tensor:
    """An uninitialised CPU tensor for reuse: page-aligned and advised for huge pages when large, pinned on request.

    Raises:
        ValueError: for pinned memory where CUDA is not available or refuses it.
    """
    if pin_memory:
        check_pinning()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    # Pinned tensors of any size get pages of their own: CUDA registers whole pages, and each only once.
    if (size < memory.HUGE_PAGE and not (pin_memory and size)) or not memory.HAS_PAGES:
        return torch.empty(shape, dtype=dtype, memory_format=layout, pin_memory=pin_memory)
    array = memory.pages(size)
    if pin_memory:
        _register(array.ctypes.data, size)
        # The tensor keeps the array, so this runs before the pages are unmapped. At exit the driver tidies up itself.
        weakref.finalize(array, _unregister, array.ctypes.data).atexit = False
    flat = torch.from_numpy(array).view(dtype)
    if channels_last:
        b, c, h, w = shape
        return flat.view(b, h, w, c).permute(0, 3, 1, 2)
    return flat.view(shape)


def check_pinning() -> None:
    """Check that memory can be pinned here."""
    if not torch.cuda.is_available():
        raise ValueError("pin_memory=True needs CUDA, which is not available here")


def _register(address: int, size: int) -> None:
    code = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
    if code != 0:
        raise ValueError(f"pin_memory=True: CUDA could not pin {size:,} bytes (error {code}; see `ulimit -l`)")


def _unregister(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)


def batch_buffers(
    batch: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    reusable: bool,
    pin_memory: bool = False,
) -> Batch:
    """Buffers of one batch whose input has `shape`; `reusable` ones are worth huge pages."""

    def make(extents: tuple[int, ...], kind: torch.dtype, last: bool = False) -> Tensor:
        if reusable:
            return buffer(extents, kind, last, pin_memory)
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty(extents, dtype=kind, memory_format=layout, pin_memory=pin_memory)

    with torch.inference_mode(False):  # buffers outlive the mode of whoever asks for the first batch
        values = make((batch, *shape), dtype, channels_last)
        label, partner_label, index, partner, group = (make((batch,), torch.int64) for _ in range(5))
        return Batch(values, label, partner_label, make((batch,), torch.float32), index, partner, group)


def poison(batch: Batch) -> None:
    """Overwrite a batch with NaN and the smallest integers, so that whoever still uses it notices.

    By NumPy, in this thread alone: torch's own threads are not there after a fork.
    """
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    for tensor in batch.tensors():
        bits = tensor.view(integers[tensor.itemsize]).numpy()
        bits.fill(-1 if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)  # all bits set are a NaN
    torch.autograd.graph.increment_version(batch.tensors())


class Ring:
    """2 P + 1 buffers for `prefetch` = P: P that the consumer may still use, P that are ready, one that is being filled.

    With P = 0 there is one, the consumer's until the next batch is asked for. `make` may return None: the ring then
    hands out nothing to write into, and only counts.
    """

    def __init__(self, make: Callable[[], Batch | None], prefetch: int) -> None:
        self._make = make
        self._buffers = [make() for _ in range(2 * prefetch + 1)]
        self._size, self._lifetime = len(self._buffers), max(1, prefetch)
        self._reused = self._buffers[0] is not None
        self._held: deque[Batch | None] = deque(self._buffers[: self._lifetime])  # the consumer's, oldest first
        self._resting: deque[Batch | None] = deque()
        self._copies: dict[int, torch.cuda.Event] = {}

    def restart(self, debug: bool) -> list[Batch | None]:
        """The buffers to fill first: all but those the consumer may still use from an earlier iteration.

        With `debug`, a buffer that is taken back is poisoned, and one more buffer lets it rest for a batch: misuse then
        finds the poison and not newer contents.
        """
        debug = debug and self._reused
        if debug and len(self._buffers) == self._size:
            self._buffers.append(self._make())
        held = {id(b) for b in self._held}
        free = [b for b in self._buffers if id(b) not in held] if self._reused else self._buffers[len(self._held) :]
        while len(self._held) < self._lifetime:  # an iteration that broke off between taking and handing out
            self._held.appendleft(free.pop())
        self._resting.clear()
        if debug:
            self._resting.append(free.pop())
        return free

    def take_back(self) -> Batch | None:
        """The buffer whose lifetime ends now that another batch is handed out: it may be filled again."""
        free = self._held.popleft()
        copy = self._copies.pop(id(free), None)
        if copy is not None:
            copy.synchronize()
        if self._resting and free is not None:
            poison(free)
            self._resting.append(free)
            free = self._resting.popleft()
        return free

    def hand_out(self, batch: Batch) -> None:
        """`batch` is the consumer's from now on."""
        self._held.append(batch if self._reused else None)

    def copied(self, batch: Batch, device: torch.device) -> None:
        """A copy of pinned `batch` to `device` was queued: its buffer is not taken back before that is done."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        self._copies[id(batch)] = event
