"""Reusable batch buffers: allocation, packing of the small tensors, and the ring that recycles them.

A fresh buffer per batch costs several times as much as the fused kernel, because each of its pages faults on first use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spurmix.core import memory
from spurmix.data.batch import Batch, TokenPairs
from spurmix.data.memory import host_tensor

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class PackedBatch(Batch):
    """A batch with all small tensors in one buffer, so that one transfer copies all of them.

    Attributes:
        packed: uint8 `[bytes]`, the memory of label, partner_label, index, partner, group and lam.
    """

    packed: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy the batch to `device`: the input and, in one transfer, everything else."""
        fields = batch_fields(self.packed.to(device, non_blocking=non_blocking), len(self))
        values: Tensor | TokenPairs
        if isinstance(self.input, Tensor):
            values = self.input.to(device, non_blocking=non_blocking)
        else:
            ids, partner_ids, mask, partner_mask = (
                t.to(device, non_blocking=non_blocking) for t in self.input.tensors()[:4]
            )
            values = TokenPairs(ids, partner_ids, mask, partner_mask, fields[2], self.input.padding_side)
        return Batch(values, *fields)


def allocate(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    reusable: bool,
    pin_memory: bool = False,
    channels_last: bool = False,
    device: torch.device = _CPU,
) -> Tensor:
    """Allocate an uninitialized tensor. Reusable tensors on the CPU use huge pages."""
    if reusable and device.type == "cpu":
        return host_tensor(shape, dtype, channels_last, pin_memory)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=layout, pin_memory=pin_memory, device=device)


def views(packed: Tensor, parts: Sequence[tuple[torch.dtype, tuple[int, ...]]], offset: int = 0) -> list[Tensor]:
    """Lay out tensors one after the other in `packed` (uint8), from byte `offset` on.

    Each view has its own version counter (`.data`), because autograd must not treat a change of one view as a change of all.
    """
    tensors = []
    for dtype, shape in parts:
        size = dtype.itemsize * torch.Size(shape).numel()
        tensors.append(packed[offset : offset + size].view(dtype).view(shape).data)
        offset += size
    return tensors


def batch_fields(packed: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Label, partner_label, lam, index, partner and group of `count` samples as views of `packed`."""
    vector = (torch.int64, (count,))
    label, partner_label, index, partner, group, lam = views(packed, [vector] * 5 + [(torch.float32, (count,))])
    return label, partner_label, lam, index, partner, group


FIELD_BYTES = 5 * 8 + 4
"""Bytes per sample of the tensors of `batch_fields`."""


def batch_buffers(
    batch: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    reusable: bool,
    pin_memory: bool = False,
    device: torch.device = _CPU,
) -> Batch:
    """Allocate a batch of inputs with `shape` per sample. The small tensors of a pinned batch are packed."""
    with torch.inference_mode(False):  # buffers outlive the inference mode of the caller
        values = allocate((batch, *shape), dtype, reusable, pin_memory, channels_last, device)
        return _with_fields(values, batch, reusable, pin_memory, device)


def token_buffers(
    width: int, *, batch: int, reusable: bool, pin_memory: bool = False, padding_side: str = "right"
) -> Batch:
    """Allocate a batch of token pairs, padded to `width`."""
    with torch.inference_mode(False):
        ids, partner_ids = (allocate((batch, width), torch.int64, reusable, pin_memory) for _ in range(2))
        mask, partner_mask = (allocate((batch, width), torch.bool, reusable, pin_memory) for _ in range(2))
        buffers = _with_fields(ids, batch, reusable, pin_memory, _CPU)
        return replace(buffers, input=TokenPairs(ids, partner_ids, mask, partner_mask, buffers.lam, padding_side))


def _with_fields(values: Tensor, batch: int, reusable: bool, pin_memory: bool, device: torch.device) -> Batch:
    if pin_memory:
        packed = allocate((batch * FIELD_BYTES,), torch.uint8, reusable, pin_memory, device=device)
        return PackedBatch(values, *batch_fields(packed, batch), packed)
    lam = allocate((batch,), torch.float32, reusable, device=device)
    label, partner_label, index, partner, group = (
        allocate((batch,), torch.int64, reusable, device=device) for _ in range(5)
    )
    return Batch(values, label, partner_label, lam, index, partner, group)


def narrowed(batch: Batch, width: int) -> Batch:
    """View the beginning of wide token buffers as a dense batch of token pairs of `width`."""
    pairs = batch.input
    assert isinstance(pairs, TokenPairs)
    # This runs for every batch. `as_strided` and the constructor take a fifth of the time of views and `replace`.
    size, stride = (len(batch), width), (width, 1)
    ids, partner_ids, mask, partner_mask = (t.as_strided(size, stride) for t in pairs.tensors()[:4])
    narrow = TokenPairs(ids, partner_ids, mask, partner_mask, pairs.lam, pairs.padding_side)
    return Batch(narrow, batch.label, batch.partner_label, batch.lam, batch.index, batch.partner, batch.group)


def poison(batch: Batch) -> None:
    """Overwrite an expired batch with NaN, the smallest integers and True, which makes later use of it visible.

    On the CPU, NumPy writes in the calling thread, because the threads of torch do not exist after a fork.
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


def _check_memory(size: int, count: int) -> None:
    """Check that `count` batches of `size` bytes fit. The system overcommits memory and later kills the process."""
    if size * count > (free := memory.available()):
        raise MemoryError(
            f"batch_size, prefetch: {count} batches of {size / 2**30:,.1f} GiB are in memory at a time, but only "
            f"{free / 2**30:,.1f} GiB are available; reduce batch_size or prefetch"
        )


class BufferRing:
    """Recycles 2 P + 1 buffers for `prefetch` = P: P in use by the consumer, P ready, one being written.

    With P = 0 there is one buffer, which the consumer uses until it requests the next batch.

    Args:
        make: Allocates a buffer. May return None: the ring then only counts, and batches are made in fresh memory.
        prefetch: Number of batches that stay valid for the consumer.
        ahead: Whether batches are made ahead of the consumer. If False, there are only the consumer's P buffers.
    """

    def __init__(self, make: Callable[[], Batch | None], prefetch: int, ahead: bool = True) -> None:
        self._make = make
        count = 2 * prefetch + 1 if ahead else max(1, prefetch)
        first = make()
        if isinstance(first, Batch) and first.lam.is_cpu:
            _check_memory(sum(t.nbytes for t in first.tensors()), count)
        self._buffers = [first, *(make() for _ in range(count - 1))]
        self._size, self._lifetime = len(self._buffers), max(1, prefetch)
        self._reused = self._buffers[0] is not None
        self._held: deque[Batch | None] = deque(
            self._buffers[: self._lifetime]
        )  # buffers of the consumer, oldest first
        self._resting: deque[Batch | None] = deque()
        self._copies: dict[int, torch.cuda.Event] = {}

    def restart(self, debug: bool) -> list[Batch | None]:
        """Return the buffers to write first: all except those the consumer may still use from an earlier iteration.

        With `debug`, a reclaimed buffer is poisoned and not reused for one batch, so that late use reads the poison.
        """
        debug = debug and self._reused
        if debug and len(self._buffers) == self._size:
            self._buffers.append(self._make())
        held = {id(b) for b in self._held}
        free = [b for b in self._buffers if id(b) not in held] if self._reused else self._buffers[len(self._held) :]
        while len(self._held) < self._lifetime:  # an iteration was stopped between `reclaim` and `deliver`
            self._held.appendleft(free.pop())
        self._resting.clear()
        if debug:
            self._resting.append(free.pop())
        return free

    def reclaim(self) -> Batch | None:
        """Take the oldest buffer from the consumer. It may be written again."""
        free = self._held.popleft()
        copy = self._copies.pop(id(free), None)
        if copy is not None:
            copy.synchronize()
        if self._resting and free is not None:
            poison(free)
            self._resting.append(free)
            free = self._resting.popleft()
        return free

    def deliver(self, buffers: Batch | None) -> None:
        """Record that `buffers` were passed to the consumer."""
        self._held.append(buffers)

    def withdraw(self, count: int) -> None:
        """Take back the last `count` delivered buffers, which the consumer did not receive. They are written next."""
        self._held.rotate(count)

    def record_copy(self, device: torch.device) -> None:
        """Note that a copy of the last delivered, pinned buffer to `device` was queued. `reclaim` waits for it."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        self._copies[id(self._held[-1])] = event
