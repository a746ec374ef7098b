"""MixLoader: an endless, exactly balanced, mixed sequence of examples, cut into batches and made ahead of time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.batch import Batch
from spurmix.data.prefetch import Prefetcher
from spurmix.data.ring import batch_buffers
from spurmix.data.sources import FeatureSource, ImageSource, as_source, as_tensor
from spurmix.ops import validate
from spurmix.ops.augment import NO_AUGMENT, Augment
from spurmix.ops.backends import implementation
from spurmix.ops.tables import draw_tables


class MixLoader:
    """Yields mixed batches: sample number, not sampler state, decides what is in them.

    Batch k of the run holds samples k * batch_size to (k + 1) * batch_size of the policy's global sequence, whatever the
    number of processes; rank r of w yields the r-th of w equal contiguous parts. Resuming needs one integer.

    Args:
        source: `ImageSource`, `FeatureSource`, or an array or tensor of uint8 images / float features.
        groups: the `GroupIndex` of the same examples.
        policy: see `spurmix.policies`.
        batch_size: global batch size, a multiple of `world_size`.
        seed: of the sequence, in [0, 2^63).
        steps: batches in the run; or `epochs`: passes over N samples, rounded up to whole batches. Default: one epoch.
        device: where batches are delivered.
        dtype: float32, float16 or bfloat16 of the input.
        channels_last: memory format of image inputs.
        augment: `Augment` for images, or None.
        rank, world_size: this process and their number.
        prefetch: batches made ahead by a background thread; 0 makes them on demand.
        copy: hand out fresh memory each time. Otherwise buffers are reused: a batch stays valid until `prefetch` further
            batches were taken (with prefetch=0, until the next one). Autograd notices a violation: the buffer's version
            changes when it is refilled.

    Iterating continues at `step` and leaves `step == len(loader)` at the end; iterating again then starts over at 0.
    `len(loader)` is the number of batches of the whole run.

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
    ) -> None:
        self.source: ImageSource | FeatureSource = as_source(source)
        self.groups, self.policy = groups, policy
        self.batch_size = _integer(batch_size, "batch_size", 1)
        self.world_size = _integer(world_size, "world_size", 1)
        self.rank = _integer(rank, "rank", 0)
        self.prefetch = _integer(prefetch, "prefetch", 0)
        self.seed = _integer(seed, "seed", 0)
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
        self.device = torch.device(device) if device is not None else torch.device("cpu")
        self.copy = bool(copy)
        self.channels_last = bool(channels_last)
        self.augment = augment if augment is not None else NO_AUGMENT
        if not isinstance(self.augment, Augment):
            raise TypeError(f"augment must be an Augment or None, got {type(augment).__name__}")
        self._labels = _label_tensor(groups)
        self._step = 0
        self._taken = 0  # batches ever handed out; decides the buffer, where step decides the content
        self._active: Prefetcher | None = None
        self._ring: list[Batch | None] = []
        if isinstance(self.source, ImageSource):
            height, width, channels = self.source.shape
            self._shape: tuple[int, ...] = (channels, *self.augment.output_size(height, width))
            self._fill = self._fill_images
        else:
            if augment is not None or channels_last:
                name = "augment" if augment is not None else "channels_last"
                raise ValueError(f"{name} is for images; this source holds features")
            self._shape = self.source.shape
            self._fill = self._fill_features

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
        step = _integer(step, "step", 0)
        if step > self.steps:
            raise ValueError(f"step must lie in [0, {self.steps}], got {step}")
        self._stop()
        self._step = step

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        self._stop()
        if self._step >= self.steps:
            self._step = 0
        if not self._ring:
            size = 2 * self.prefetch + 1
            self._ring = [None] * size if self.copy else [self._buffers(reusable=True) for _ in range(size)]
        # Batches a caller still holds from an earlier iteration are the newest `prefetch`: start behind them.
        self._active = Prefetcher(self._fill, range(self._step, self.steps), self._turned_ring(), self.prefetch)
        return self._iterate(self._active)

    def _iterate(self, batches: Prefetcher) -> Iterator[Batch]:
        try:
            for batch in batches:
                if batches is not self._active:
                    return
                self._step += 1
                self._taken += 1
                yield batch if self.device.type == "cpu" else batch.to(self.device, non_blocking=True)
        finally:
            batches.close()

    def _turned_ring(self) -> list[Batch | None]:
        turn = self._taken % len(self._ring)
        return self._ring[turn:] + self._ring[:turn]

    def _stop(self) -> None:
        if self._active is not None:
            self._active.close()
            self._active = None

    def _buffers(self, reusable: bool) -> Batch:
        return batch_buffers(self.local_batch_size, self._shape, self.dtype, self.channels_last, reusable)

    def _start(self, step: int) -> int:
        return step * self.batch_size + self.rank * self.local_batch_size

    def _fill_images(self, step: int, buffers: Batch | None) -> Batch:
        batch = buffers if buffers is not None else self._buffers(reusable=False)
        source, augment = self.source, self.augment
        assert isinstance(source, ImageSource)
        op = implementation("mix_image_batch_out", "auto", source.images.device)
        op(
            source.images, self._labels, self.tables.packed, self.tables.members, source.mean, source.std,
            augment.crop, *augment.scale, *augment.ratio, augment.flip, self.seed, self._start(step), None,
            *batch.tensors(),
        )  # fmt: skip
        torch.autograd.graph.increment_version(batch.tensors())
        return batch

    def _fill_features(self, step: int, buffers: Batch | None) -> Batch:
        batch = buffers if buffers is not None else self._buffers(reusable=False)
        source = self.source
        assert isinstance(source, FeatureSource)
        cpu = source.features.device
        tables = self.tables
        implementation("draw_out", "auto", cpu)(
            tables.packed, tables.members, self.seed, self._start(step), None,
            batch.index, batch.partner, batch.lam, batch.group,
        )  # fmt: skip
        implementation("mix_rows_out", "auto", cpu)(source.features, batch.index, batch.partner, batch.lam, batch.input)
        batch.label.copy_(self._labels[batch.index])
        keep = self.tables.keeps_labels
        batch.partner_label.copy_(batch.label if keep else self._labels[batch.partner])
        torch.autograd.graph.increment_version(batch.tensors())
        return batch

    def fingerprint(self) -> dict[str, Any]:
        """What decides the sequence: groups, policy, seed and global batch size."""
        return {
            "groups": self.groups.fingerprint(),
            "policy": self.tables.fingerprint,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def state_dict(self) -> dict[str, Any]:
        """{"step": batches handed out, "fingerprint": {...}}; the same on every rank, and for any number of ranks."""
        return {"step": self._step, "fingerprint": self.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: where the state belongs to another sequence, naming what differs.
        """
        if not isinstance(state, dict) or not {"step", "fingerprint"} <= state.keys():
            raise ValueError('state must be what state_dict() gave: {"step", "fingerprint"}')
        own, other = self.fingerprint(), state["fingerprint"]
        different = [name for name in own if own[name] != other.get(name)]
        if "groups" in different and "policy" in different:
            different.remove("policy")  # tables contain the groups' sizes
        if different:
            listed = ", ".join(f"{name} ({other.get(name)!r} there, {own[name]!r} here)" for name in different)
            raise ValueError(f"state belongs to another sequence; different: {listed}")
        self.set_step(state["step"])

    def __repr__(self) -> str:
        return (
            f"MixLoader({self.source!r}, policy={self.policy.name}, batch_size={self.batch_size}, seed={self.seed}, "
            f"step {self._step} of {self.steps}, rank {self.rank} of {self.world_size})"
        )


def _integer(value: Any, name: str, low: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    number = int(value)
    if number < low:
        raise ValueError(f"{name} must be {low} or more, got {number}")
    return number


def _steps(steps: int | None, epochs: float | None, examples: int, batch_size: int) -> int:
    if steps is not None and epochs is not None:
        raise ValueError("steps and epochs: give one of them")
    if steps is not None:
        return _integer(steps, "steps", 1)
    passes = 1.0 if epochs is None else float(epochs)
    if not (math.isfinite(passes) and passes > 0):
        raise ValueError(f"epochs must be a positive number, got {epochs!r}")
    return max(1, math.ceil(passes * examples / batch_size))


def _label_tensor(groups: GroupIndex) -> Tensor:
    """The labels as a tensor of an integer dtype the ops read; unsigned ones torch cannot index by are converted."""
    labels = groups.labels
    kind = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}.get(labels.dtype.name)
    return as_tensor(labels.astype(kind) if kind else labels, "labels").contiguous()
