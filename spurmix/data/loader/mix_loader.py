"""MixLoader: iterates over mixed batches of an exactly balanced sample sequence, made in advance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import torch

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.batch import Batch
from spurmix.data.loader.cuda_stream import StaticBatch
from spurmix.data.loader.delivery import BatchDelivery
from spurmix.data.loader.options import check_ranks, check_source, delivery_device, run_length
from spurmix.data.loader.prefetch import Prefetcher
from spurmix.data.loader.sequence import SampleSequence
from spurmix.data.loader.state import Fingerprint, LoaderState, check_state, sequence_fingerprint
from spurmix.data.loader.strategy import BatchFormat, BatchStrategy
from spurmix.data.sources.arrays import SourceLike, as_source
from spurmix.data.sources.tokens import TokenSource
from spurmix.ops import validate
from spurmix.ops.augment import NO_AUGMENT, Augment
from spurmix.ops.tables import draw_tables


class MixLoader:
    """Iterates over mixed batches of a dataset.

    Batch k of the run contains the samples k * batch_size to (k + 1) * batch_size - 1 of the policy's sequence, which does
    not depend on the number of processes. Rank r of w receives the r-th of w equal, contiguous parts of each batch.

    Iterating continues at `step`. After the last batch, the next iteration starts again at 0. A loader has one active
    iterator: a new iterator, `set_step` and `load_state_dict` end the previous one. A pickled or deep copy starts at the
    same step as the original.

    A background thread makes batches ahead with `torch.get_num_threads()` threads, as set when iteration starts. A forked
    process must iterate over the loader again, and needs `torch.set_num_threads(1)` for its own computations.

    Batches use recycled memory unless `copy=True`. A batch stays valid until `prefetch` further batches were requested
    (with `prefetch=0`, until the next one). Autograd reports use of a recycled batch in backward. Set SPURMIX_DEBUG_RING=1
    in the environment to find any other use: expired batches are overwritten with NaN and the smallest integers.

    Args:
        source: An `ImageSource`, `FeatureSource` or `TokenSource`, or an array or tensor of uint8 images `[N, H, W, C]`
            or float features `[N, D]`.
        groups: Groups of the N examples.
        policy: Mixing policy, see `spurmix.policies`.
        batch_size: Global batch size, a multiple of `world_size`.
        seed: Seed of the sample sequence, in [0, 2^63).
        steps: Number of batches in the run. Default: one epoch.
        epochs: Length of the run in passes over N samples, rounded up to whole batches. Excludes `steps`.
        device: Device that batches are delivered to. Default: the device of the source. Sources on a GPU are mixed on the
            consumer's current stream. Other batches are made or copied on a side stream. Streams other than the current
            one must be synchronized with it before the batch expires.
        dtype: Data type of the input: float32, float16 or bfloat16.
        channels_last: Use the channels-last memory format for images.
        augment: Random crops and flips of images, or None.
        rank: Number of this process, in [0, world_size).
        world_size: Number of processes.
        prefetch: Number of batches made ahead by the background thread. 0 makes them on demand.
        copy: Return each batch in fresh memory instead of recycled buffers.
        pin_memory: Pin buffers on the CPU. Default: if batches are copied to a GPU.
        bucket: Texts only. Assign the samples of `bucket` batches to these batches by length, to reduce padding. The
            samples drawn per window do not change, so windows stay balanced, but single batches need not be.

    Attributes:
        steps: Number of batches in the run, also `len(loader)`.
        step: Number of the next batch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or does not fit the source.

    Example:
        >>> loader = MixLoader(images, groups, policies.group_balanced(), 256, epochs=3)  # doctest: +SKIP
        >>> for batch in loader:  # doctest: +SKIP
        ...     loss = criterion(model(batch.input), batch)
    """

    def __init__(
        self,
        source: SourceLike,
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
        self.batch_size, self.rank, self.world_size = check_ranks(batch_size, rank, world_size)
        self.prefetch = checks.integer(prefetch, "prefetch", 0)
        self.seed = checks.integer(seed, "seed", 0)
        self.bucket = checks.integer(bucket, "bucket", 1)
        self.copy, self.channels_last = checks.flag(copy, "copy"), checks.flag(channels_last, "channels_last")
        pinned = None if pin_memory is None else checks.flag(pin_memory, "pin_memory")
        checks.instance(augment, "augment", Augment, optional=True)
        self.tables = draw_tables(groups, policy, self.seed)
        self.steps = run_length(steps, epochs, groups.num_examples, self.batch_size)
        validate.sequence_position(self.seed, 0, self.steps * self.batch_size)
        self.dtype, self.augment = validate.float_dtype(dtype), augment if augment is not None else NO_AUGMENT
        self.device = delivery_device(self.source, device)
        check_source(self.source, groups.num_examples, self.dtype, self.channels_last, augment, self.bucket)
        batch_format = BatchFormat(
            self.local_batch_size, self.dtype, self.channels_last, self.augment, self.bucket, self.steps
        )
        self._strategy = BatchStrategy(self.source, self.device, batch_format, pinned)
        self.pin_memory = self._strategy.pin_memory
        self._sequence = SampleSequence.of_rank(
            self.tables, groups, self.seed, self.batch_size, self.rank, self.world_size, self._strategy.input_device
        )
        self._step = 0
        self._delivery = BatchDelivery(self._strategy, self.prefetch, self.copy)
        self._make_single: Callable[[int], Batch] | None = None

    @property
    def local_batch_size(self) -> int:
        """Number of samples per batch that this rank receives."""
        return self.batch_size // self.world_size

    @property
    def step(self) -> int:
        """Number of batches delivered so far, which is the number of the next batch."""
        return self._step

    def set_step(self, step: int) -> None:
        """Continue with another batch.

        Args:
            step: Number of the batch, 0 to `len(loader)`.

        Raises:
            ValueError: If the step is outside the run.
        """
        step = checks.integer(step, "step", 0)
        if step > self.steps:
            raise ValueError(f"step must be in [0, {self.steps}], got {step}")
        self._delivery.stop("the loader was set to another step; iterate over it again")
        self._step = step

    def __len__(self) -> int:
        return self.steps

    def batch(self, step: int) -> Batch:
        """Make one batch of the run in fresh memory, without changing the position of the loader.

        Args:
            step: Number of the batch, 0 to `len(loader) - 1`.

        Returns:
            The batch, on the loader's device.

        Raises:
            IndexError: If the step is outside the run.
        """
        step = checks.integer(step, "step", 0)
        if step >= self.steps:
            raise IndexError(f"step must be in [0, {self.steps}), got {step}")
        if self._make_single is None:
            self._make_single = self._strategy.single_batches(self._sequence)
        return self._make_single(step)

    def __iter__(self) -> Iterator[Batch]:
        self._delivery.stop("another iterator of the same loader was created; a loader has one active iterator")
        if self._step >= self.steps:
            self._step = 0
        maker = self._strategy.batch_maker(self._sequence)
        return self._iterate(self._delivery.start(maker, range(self._step, self.steps)))

    def _iterate(self, batches: Prefetcher) -> Iterator[Batch]:
        with closing(self._delivery.to_device(batches)) as delivered:
            for batch in delivered:
                self._step += 1
                yield batch

    def static_batch(self) -> StaticBatch:
        """Return one set of buffers and a call that writes the next batch into them, for use in a CUDA graph.

        It starts at the current `step` and does not change the position of the loader.

        Returns:
            The static batch. Its sample number is kept on the device.

        Raises:
            ValueError: If batches have no fixed shape, or are not made on the device they are delivered to.
        """
        return self._strategy.static_batch(self._sequence, self._step if self._step < self.steps else 0)

    def fingerprint(self) -> Fingerprint:
        """Return what determines the sequence.

        Returns:
            The fingerprints of groups and policy, the seed and the global batch size. For texts also the fingerprint of
            the tokens and the buckets.
        """
        tokens = self.source.fingerprint() if isinstance(self.source, TokenSource) else None
        return sequence_fingerprint(self._sequence, self.groups, tokens, self.bucket, self.steps)

    def state_dict(self) -> LoaderState:
        """Return the position, which is the same on every rank and for any number of ranks.

        Returns:
            `{"step": batches delivered, "fingerprint": {...}}`.
        """
        return {"step": self._step, "fingerprint": self.fingerprint()}

    def load_state_dict(self, state: LoaderState) -> None:
        """Continue where `state` was taken.

        Args:
            state: A result of `state_dict`.

        Raises:
            ValueError: If the state belongs to another sequence. The message names what differs.
        """
        self.set_step(check_state(state, self.fingerprint()))

    def __reduce__(self) -> tuple[Callable[..., MixLoader], tuple[object, ...], int]:
        """Copy as a new loader at the same step, with its own buffers, thread and open files."""
        options: dict[str, Any] = dict(
            seed=self.seed, steps=self.steps, device=self.device, dtype=self.dtype, channels_last=self.channels_last,
            augment=None if self.augment is NO_AUGMENT else self.augment, rank=self.rank, world_size=self.world_size,
            prefetch=self.prefetch, copy=self.copy, pin_memory=self.pin_memory, bucket=self.bucket,
        )  # fmt: skip
        arguments = (self.source, self.groups, self.policy, self.batch_size)
        return partial(type(self), **options), arguments, self._step

    def __setstate__(self, step: int) -> None:
        self.set_step(step)

    def __repr__(self) -> str:
        return (
            f"MixLoader({self.source!r}, policy={self.policy.name}, batch_size={self.batch_size}, seed={self.seed}, "
            f"step {self._step} of {self.steps}, rank {self.rank} of {self.world_size})"
        )
