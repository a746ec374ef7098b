"""Ring memory: batch buffers that are allocated once, on huge pages where the system gives them, and reused.

A fresh buffer per batch costs several times the fused kernel: every page of it faults when first written.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from spurmix.core import memory
from spurmix.data.batch import Batch, TokenPairs

_CPU = torch.device("cpu")


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
    device: torch.device = _CPU,
) -> Batch:
    """Buffers of one batch whose input has `shape`; `reusable` ones on the CPU are worth huge pages."""
    with torch.inference_mode(False):  # buffers outlive the mode of whoever asks for the first batch
        values = _make((batch, *shape), dtype, reusable, pin_memory, channels_last, device)
        lam, rest = _small_buffers(batch, reusable, pin_memory, device)
        return Batch(values, rest[0], rest[1], lam, *rest[2:])


def token_buffers(width: int, *, batch: int, reusable: bool, pin_memory: bool = False) -> Batch:
    """Buffers of one batch of token pairs, padded to `width`."""
    with torch.inference_mode(False):
        ids, partner_ids = (_make((batch, width), torch.int64, reusable, pin_memory) for _ in range(2))
        mask, partner_mask = (_make((batch, width), torch.bool, reusable, pin_memory) for _ in range(2))
        lam, rest = _small_buffers(batch, reusable, pin_memory)
        return Batch(TokenPairs(ids, partner_ids, mask, partner_mask, lam), rest[0], rest[1], lam, *rest[2:])


def narrowed(batch: Batch, width: int) -> Batch:
    """The batch of token pairs of `width` that lies dense at the beginning of wider buffers."""
    pairs = batch.input
    assert isinstance(pairs, TokenPairs)
    rows = len(batch)
    ids, partner_ids, mask, partner_mask = (t.view(-1)[: rows * width].view(rows, width) for t in pairs.tensors()[:4])
    return replace(batch, input=TokenPairs(ids, partner_ids, mask, partner_mask, pairs.lam))


def _make(
    extents: tuple[int, ...],
    kind: torch.dtype,
    reusable: bool,
    pin_memory: bool,
    channels_last: bool = False,
    device: torch.device = _CPU,
) -> Tensor:
    if reusable and device.type == "cpu":
        return buffer(extents, kind, channels_last, pin_memory)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(extents, dtype=kind, memory_format=layout, pin_memory=pin_memory, device=device)


def _small_buffers(
    batch: int, reusable: bool, pin_memory: bool, device: torch.device = _CPU
) -> tuple[Tensor, list[Tensor]]:
    """lam, and the five int64 vectors of a batch."""
    lam, *vectors = (
        _make((batch,), kind, reusable, pin_memory, device=device) for kind in (torch.float32, *[torch.int64] * 5)
    )
    return lam, vectors


def poison(batch: Batch) -> None:
    """Overwrite a batch with NaN, the smallest integers and True, so that whoever still uses it notices.

    On the CPU by NumPy, in this thread alone: torch's own threads are not there after a fork.
    """
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    for tensor in batch.tensors():
        if tensor.itemsize == 1:
            bits, value = tensor, 1
        else:  # all bits set are a NaN
            bits = tensor.view(integers[tensor.itemsize])
            value = -1 if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min
        if bits.is_cpu:
            bits.numpy().fill(value)
        else:
            bits.fill_(value)
    torch.autograd.graph.increment_version(batch.tensors())


def _check_room(size: int, count: int) -> None:
    """Check that `count` batches of `size` bytes fit into memory: the system hands out more than it has, then kills.

    Raises:
        MemoryError: where they do not.
    """
    if size * count > (free := memory.available()):
        raise MemoryError(
            f"batch_size, prefetch: {count} batches of {size / 2**30:,.1f} GiB are held at a time, {free / 2**30:,.1f} GiB "
            "are available; take smaller batches, or fewer ahead"
        )


class Ring:
    """2 P + 1 buffers for `prefetch` = P: P that the consumer may still use, P that are ready, one that is being filled.

    With P = 0 there is one, the consumer's until the next batch is asked for. Where nothing is made ahead (`ahead` False,
    on a GPU's stream), there are only the consumer's P. `make` may return None: the ring then hands out nothing to write
    into, and only counts.
    """

    def __init__(self, make: Callable[[], Batch | None], prefetch: int, ahead: bool = True) -> None:
        self._make = make
        count = 2 * prefetch + 1 if ahead else max(1, prefetch)
        first = make()
        if isinstance(first, Batch) and first.lam.is_cpu:
            _check_room(sum(t.nbytes for t in first.tensors()), count)
        self._buffers = [first, *(make() for _ in range(count - 1))]
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

    def hand_out(self, buffers: Batch | None) -> None:
        """What lies in `buffers` is the consumer's from now on."""
        self._held.append(buffers)

    def unused(self, count: int) -> None:
        """The `count` that were handed out last were not asked for: they are the first to be filled again."""
        self._held.rotate(count)

    def copied(self, device: torch.device) -> None:
        """A copy of what was handed out last, pinned, to `device` was queued: it is not taken back before that is done."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        self._copies[id(self._held[-1])] = event
