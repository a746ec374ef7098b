"""MixLoader: an endless, exactly balanced, mixed sequence of examples, cut into batches and made ahead of time."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.batch import Batch
from spurmix.data.loader.batch_maker import (
    Stream,
    Write,
    feature_writer,
    fill_by,
    fill_tokens,
    image_writer,
    label_tensor,
)
from spurmix.data.loader.buffers import Ring, batch_buffers, check_pinning, token_buffers
from spurmix.data.loader.cuda_stream import SideStream, StaticBatch, delivery_device, reads_host
from spurmix.data.loader.host_gather import Gathered, Mixer, fill_gathered, gather_buffers, pays
from spurmix.data.loader.prefetch import Fill, Prefetcher
from spurmix.data.sources.arrays import FeatureSource, ImageSource, as_source
from spurmix.data.sources.tokens import TokenSource
from spurmix.data.sources.windowed import WindowedImages, fill_windows
from spurmix.ops import flags, validate
from spurmix.ops.augment import NO_AUGMENT, Augment
from spurmix.ops.tables import draw_tables


class MixLoader:
    """Yields mixed batches: sample number, not sampler state, decides what is in them.

    Batch k of the run holds samples k * batch_size to (k + 1) * batch_size of the policy's global sequence, whatever the
    number of processes; rank r of w yields the r-th of w equal contiguous parts. Resuming needs one integer.

    Args:
        source: `ImageSource`, `FeatureSource`, `TokenSource`, or an array or tensor of uint8 images / float features.
        groups: the `GroupIndex` of the same examples.
        policy: see `spurmix.policies`.
        batch_size: global batch size, a multiple of `world_size`.
        seed: of the sequence, in [0, 2^63).
        steps: batches in the run; or `epochs`: passes over N samples, rounded up to whole batches. Default: one epoch.
        device: where batches are delivered; default: where the source is. A source on a GPU is mixed there, on the
            consumer's current stream. For a GPU, a pinned source (`ImageSource.pinned()`) is read by the GPU's kernels.
            Other images are gathered by the background thread and mixed on the GPU where that is less to copy; where it
            is not, and for features and texts, batches are made on the CPU and copied. All on a stream of its own, ahead
            of the consumer. Work on a batch queued on other streams than the current one must be waited for before the
            batch's lifetime ends.
        dtype: float32, float16 or bfloat16 of the input.
        channels_last: memory format of image inputs.
        augment: `Augment` for images, or None.
        rank, world_size: this process and their number.
        prefetch: batches made ahead by a background thread; 0 makes them on demand.
        copy: hand out fresh memory each time. Otherwise buffers are reused: a batch stays valid until `prefetch` further
            batches were taken (with prefetch=0, until the next one). Autograd notices a violation: the buffer's version
            changes when it is refilled. With SPURMIX_DEBUG_RING=1 in the environment when iteration starts, every other
            use shows too: a batch is overwritten with NaN and the smallest integers as soon as its lifetime ends.
        pin_memory: pin the buffers that are filled on the CPU, so that they are copied to a CUDA `device` while the CPU
            goes on; default: where they are copied to one.
        bucket: texts only: within each window of `bucket` batches, samples are handed to batches by length, so that less
            is padding. Who is drawn in a window does not change, hence windows of whole schedule periods are balanced
            exactly, their single batches are not. Everything stays a function of (seed, step); a last window that the
            run's end cuts short holds what the run would draw anyway.

    Iterating continues at `step` and leaves `step == len(loader)` at the end; iterating again then starts over at 0.
    `len(loader)` is the number of batches of the whole run. A loader has one iterator at a time: a new one, `set_step`
    and `load_state_dict` end the one before, which says so when it is asked for more. After a fork the new process
    iterates over the loader afresh; a pickled or deep copy, with all that the source holds in memory, begins where the
    original stands. What a forked process computes itself needs `torch.set_num_threads(1)`, as always after a fork.

    The background thread runs the op on its own team of as many threads as `torch.get_num_threads()` was where iteration
    started, and holds no GIL meanwhile. It sleeps while `prefetch` batches are ready; when it wakes during the consumer's
    own parallel work, both teams share the cores; `torch.set_num_threads` of half of them leaves each its half.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> loader = MixLoader(images, groups, policies.group_balanced(), 256, epochs=3)  # doctest: +SKIP
        >>> for batch in loader: loss = criterion(model(batch.input), batch)  # doctest: +SKIP
    """

    def __init__(
        self,
        source: Any,
        groups: GroupIndex,
        policy: MixPolicy,
        batch_size: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        epochs: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        augment: Augment | None = None,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        copy: bool = False,
        pin_memory: bool | None = None,
        bucket: int = 1,
    ) -> None:
        self.source = as_source(source)
        self.groups, self.policy = groups, policy
        self.batch_size = checks.integer(batch_size, "batch_size", 1)
        self.world_size = checks.integer(world_size, "world_size", 1)
        self.rank = checks.integer(rank, "rank", 0)
        self.prefetch = checks.integer(prefetch, "prefetch", 0)
        self.seed = checks.integer(seed, "seed", 0)
        self.bucket = checks.integer(bucket, "bucket", 1)
        self.copy, self.channels_last = checks.flag(copy, "copy"), checks.flag(channels_last, "channels_last")
        pinned = None if pin_memory is None else checks.flag(pin_memory, "pin_memory")
        checks.instance(augment, "augment", Augment, optional=True)
        if self.rank >= self.world_size:
            raise ValueError(f"rank must lie in [0, world_size) = [0, {self.world_size}), got {rank}")
        if self.batch_size % self.world_size:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by world_size {self.world_size}")
        self.tables = draw_tables(groups, policy)
        if len(self.source) != groups.num_examples:
            raise ValueError(f"source has {len(self.source)} examples, the groups have {groups.num_examples}")
        self.steps = _steps(steps, epochs, groups.num_examples, self.batch_size)
        validate.sequence_position(self.seed, 0, self.steps * self.batch_size)
        self.dtype = validate.float_dtype(dtype)
        self.device = delivery_device(self.source, device)
        self._reads_host = reads_host(self.source, self.device)
        self._made_on = self.device if self._reads_host else self.source.device
        copied = self.device.type == "cuda" and self._made_on.type == "cpu"
        self.pin_memory = copied if pinned is None else pinned
        if self.pin_memory:
            check_pinning()
        self.augment = augment if augment is not None else NO_AUGMENT
        self._labels = label_tensor(groups).to(self._made_on)
        self._tables = self.tables.to(self._made_on)
        self._step = 0
        self._active: weakref.ref[Prefetcher] | None = None
        self._side: weakref.ref[SideStream] | None = None
        self._gathers = False  # whether images are copied as they are, and mixed on the device
        self._mixer: Mixer | None = None
        self._ring: Ring | None = None
        self._fill: Fill | None = None  # of `batch`
        text = isinstance(self.source, TokenSource)
        if self.bucket > 1 and not text:
            raise ValueError("bucket is for texts, whose lengths differ")
        if text and self.dtype != torch.float32:
            raise ValueError(f"dtype is for images and features, got {self.dtype}; token ids are int64")
        if isinstance(self.source, ImageSource):
            height, width, channels = self.source.shape
            self._shape: tuple[int, ...] = (channels, *self.augment.output_size(height, width))
            self._gathers = copied and pays(self.source, math.prod(self._shape) * self.dtype.itemsize, self.augment)
            return
        if augment is not None or channels_last:
            name = "augment" if augment is not None else "channels_last"
            raise ValueError(f"{name} is for images; this source holds {'texts' if text else 'features'}")
        if isinstance(self.source, FeatureSource):
            self._shape = self.source.shape

    @property
    def local_batch_size(self) -> int:
        """Examples of a batch that this rank yields."""
        return self.batch_size // self.world_size

    @property
    def step(self) -> int:
        """Batches handed out so far, the number of the next one."""
        return self._step

    def set_step(self, step: int) -> None:
        """Continue with batch number `step`, 0 to len(loader)."""
        step = checks.integer(step, "step", 0)
        if step > self.steps:
            raise ValueError(f"step must lie in [0, {self.steps}], got {step}")
        self._stop("the loader was set to another step; iterate over it again")
        self._step = step

    def __len__(self) -> int:
        return self.steps

    def batch(self, step: int) -> Batch:
        """Batch number `step` of the run, 0 to len(loader) - 1, in fresh memory; iteration goes on where it was.

        Raises:
            IndexError: for a step outside the run.
        """
        step = checks.integer(step, "step", 0)
        if step >= self.steps:
            raise IndexError(f"step must lie in [0, {self.steps}), got {step}")
        if self._fill is None:
            self._fill = self._filler()
        batch = self._fill(step, None)
        if self._gathers:
            return self._new_mixer(Ring(lambda: None, 1, ahead=False))(batch)
        return batch if self.device.type == "cpu" else batch.to(self.device)

    def __iter__(self) -> Iterator[Batch]:
        self._stop("another iterator of the same loader was made since; a loader has one at a time")
        if self._step >= self.steps:
            self._step = 0
        on_gpu = self._made_on.type == "cuda"
        if self._ring is None:
            make = (lambda: None) if self.copy and not self._gathers else self._ring_buffers()
            # What a side stream makes ahead of the consumer is kept as long as it takes to be asked for, and then as ever.
            lifetime = max(1, self.prefetch)
            self._ring = Ring(make, lifetime + self._ahead if self._reads_host else self.prefetch, ahead=not on_gpu)
        debug = os.environ.get("SPURMIX_DEBUG_RING", "0") not in ("", "0")
        threads = 0 if on_gpu else self.prefetch
        if self._gathers:
            if self._mixer is None:
                to = (lambda: None) if self.copy else self._buffers(True, self.device)
                self._mixer = self._new_mixer(Ring(to, max(1, self.prefetch) + self._ahead, ahead=False))
            self._mixer.ring.restart(debug)
        batches = Prefetcher(self._filler(), range(self._step, self.steps), self._ring, threads, debug)
        self._active = weakref.ref(batches)
        return self._iterate(batches)

    @property
    def _ahead(self) -> int:
        """Batches that a side stream makes or copies ahead."""
        return max(1, self.prefetch) if self._reads_host else 1

    def _iterate(self, batches: Prefetcher) -> Iterator[Batch]:
        delivered: Iterator[Batch] = batches
        side: SideStream | None = None
        if self.device.type == "cuda" and (self._reads_host or self._made_on.type == "cpu"):
            produced = batches if self._reads_host else self._copied(batches)
            ring = self._mixer.ring if self._mixer is not None else self._ring if self._reads_host else None
            delivered = side = SideStream(produced, self.device, self._ahead, ring)
            self._side = weakref.ref(side)
        elif self._made_on != self.device:
            delivered = self._copied(batches)
        try:
            for batch in delivered:
                self._step += 1
                yield batch.handles()
            flags.check(self.device)
        finally:
            if side is not None:
                side.close()
            batches.close()

    def _copied(self, batches: Prefetcher) -> Iterator[Batch]:
        """Batches on the device they are delivered to; the buffers they come from are kept until they were copied."""
        waits = self.pin_memory and (self._gathers or not self.copy) and self.device.type == "cuda"
        for batch in batches:
            there = self._mixer(batch) if self._mixer is not None else batch.to(self.device, non_blocking=True)
            if waits:
                assert self._ring is not None
                self._ring.copied(self.device)
            yield there

    def _stop(self, reason: str) -> None:
        active = self._active() if self._active is not None else None
        if active is not None:
            active.close(reason)
        side = self._side() if self._side is not None else None
        if side is not None:
            side.close()
        self._active = self._side = None

    def _ring_buffers(self) -> Callable[[], Batch]:
        if isinstance(self.source, TokenSource):
            return partial(self._token_buffers(reusable=True), self.source.width(self.source.longest))
        return self._gather_buffers(True) if self._gathers else self._buffers(reusable=True)

    def _token_buffers(self, reusable: bool) -> partial[Batch]:
        return partial(token_buffers, batch=self.local_batch_size, reusable=reusable, pin_memory=self.pin_memory)

    def _gather_buffers(self, reusable: bool) -> partial[Gathered]:
        assert isinstance(self.source, ImageSource)
        return partial(
            gather_buffers, self.local_batch_size, self.source, self.augment, reusable, self.pin_memory, self._made_on
        )

    def _new_mixer(self, ring: Ring) -> Mixer:
        assert isinstance(self.source, ImageSource)
        there = gather_buffers(self.local_batch_size, self.source, self.augment, False, False, self.device)
        return Mixer(self.source, there, ring, self._buffers(False, self.device))

    def _buffers(self, reusable: bool, device: torch.device | None = None) -> partial[Batch]:
        place = device if device is not None else self._made_on
        return partial(
            batch_buffers,
            self.local_batch_size,
            self._shape,
            self.dtype,
            self.channels_last,
            reusable,
            self.pin_memory and place.type == "cpu",
            place,
        )

    @property
    def _stream(self) -> Stream:
        return Stream(self._tables, self._labels, self.seed, self.batch_size, self.rank * self.local_batch_size)

    def _writer(self) -> Write:
        if isinstance(self.source, ImageSource):
            return image_writer(self.source, self._stream, self.augment)
        assert isinstance(self.source, FeatureSource)
        return feature_writer(self.source, self._stream)

    def _filler(self) -> Fill:
        if isinstance(self.source, TokenSource):
            fresh_tokens = self._token_buffers(reusable=False)
            return fill_tokens(self.source, self._stream, self.local_batch_size, self.bucket, self.steps, fresh_tokens)
        if self._gathers:
            assert isinstance(self.source, ImageSource)
            gathered = self._gather_buffers(reusable=False)
            return fill_gathered(self.source, self._stream, self.augment, self.local_batch_size, self.steps, gathered)
        fresh = self._buffers(reusable=False)
        if isinstance(self.source, WindowedImages):
            return fill_windows(self.source, self._stream, self.augment, self.local_batch_size, self.steps, fresh)
        return fill_by(self._writer(), self._stream, fresh)

    def static_batch(self) -> StaticBatch:
        """Buffers that a call refills with the next batch, from the present `step` on, its number kept on the device: a
        CUDA graph that captures the call makes the next batch at each replay. Iteration goes on by itself.

        Raises:
            ValueError: for texts, whose shapes differ, and batches that are made elsewhere than delivered.
        """
        if isinstance(self.source, TokenSource):
            raise ValueError("static_batch: texts differ in length, so their batches have no fixed shape")
        if isinstance(self.source, WindowedImages):
            raise ValueError(
                "static_batch: these images are read from their file ahead of each batch; map them (window=0)"
            )
        if self._made_on != self.device:
            raise ValueError(
                f"static_batch: batches are made on {self._made_on} and copied to {self.device}; move the source there "
                "(source.to) or pin it (source.pinned())"
            )
        write, first = self._writer(), self.rank * self.local_batch_size
        buffers = self._buffers(reusable=True)()
        step = self._step if self._step < self.steps else 0
        return StaticBatch(
            buffers, lambda counter, batch: write(first, counter, batch), self.device, self.batch_size, step
        )

    def fingerprint(self) -> dict[str, Any]:
        """What decides the sequence: groups, policy, seed and global batch size; of texts, tokens and buckets as well."""
        sequence = {
            "groups": self.groups.fingerprint(),
            "policy": self.tables.fingerprint,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }
        if isinstance(self.source, TokenSource):
            sequence["tokens"] = self.source.fingerprint()
            # A last window that is cut short depends on where the run ends.
            cut = self.bucket > 1 and self.steps % self.bucket
            sequence["bucket"] = f"{self.bucket} of {self.steps}" if cut else self.bucket
        return sequence

    def state_dict(self) -> dict[str, Any]:
        """{"step": batches handed out, "fingerprint": {...}}; the same on every rank, and for any number of ranks."""
        return {"step": self._step, "fingerprint": self.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: where the state belongs to another sequence, naming what differs.
        """
        known = isinstance(state, dict) and {"step", "fingerprint"} <= state.keys()
        if not known or not isinstance(state["fingerprint"], dict):
            raise ValueError('state must be what state_dict() gave: {"step", "fingerprint"}')
        own, other = self.fingerprint(), state["fingerprint"]
        different = [name for name in own if own[name] != other.get(name)]
        if "groups" in different and "policy" in different:
            different.remove("policy")  # tables contain the groups' sizes
        if different:
            listed = ", ".join(f"{name} ({other.get(name)!r} there, {own[name]!r} here)" for name in different)
            raise ValueError(f"state belongs to another sequence; different: {listed}")
        self.set_step(state["step"])

    def __reduce__(self) -> Any:
        """A copy, pickled or deep, stands where this one stands; buffers, thread and open files it makes for itself."""
        options: dict[str, Any] = dict(
            seed=self.seed, steps=self.steps, device=self.device, dtype=self.dtype, channels_last=self.channels_last,
            augment=None if self.augment is NO_AUGMENT else self.augment, rank=self.rank, world_size=self.world_size,
            prefetch=self.prefetch, copy=self.copy, pin_memory=self.pin_memory, bucket=self.bucket,
        )  # fmt: skip
        make = partial(type(self), self.source, self.groups, self.policy, self.batch_size, **options)
        return _standing_at, (make, self._step)

    def __repr__(self) -> str:
        return (
            f"MixLoader({self.source!r}, policy={self.policy.name}, batch_size={self.batch_size}, seed={self.seed}, "
            f"step {self._step} of {self.steps}, rank {self.rank} of {self.world_size})"
        )


def _standing_at(make: Callable[[], MixLoader], step: int) -> MixLoader:
    loader = make()
    loader.set_step(step)
    return loader


def _steps(steps: int | None, epochs: float | None, examples: int, batch_size: int) -> int:
    if steps is not None and epochs is not None:
        raise ValueError("steps and epochs: give one of them")
    if steps is not None:
        return checks.integer(steps, "steps", 1)
    passes = 1.0 if epochs is None else checks.number(epochs, "epochs", positive=True)
    return max(1, math.ceil(passes * examples / batch_size))
