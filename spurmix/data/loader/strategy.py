"""Chooses how a loader makes its batches: on which device, with which strategy for the input, in which buffers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from spurmix.data.batch import Batch
from spurmix.data.loader.batch_maker import BatchMaker, InputPlanner, InputWriter
from spurmix.data.loader.buffers import BufferRing, allocate, batch_buffers, token_buffers
from spurmix.data.loader.cuda_stream import StaticBatch, gpu_reads_host
from spurmix.data.loader.host_gather import (
    DeviceMixer,
    GatheredBatch,
    GatherPlanner,
    gathered_buffers,
    gathering_is_cheaper,
)
from spurmix.data.loader.input_writers import FeatureWriter, FusedImageWriter, TokenPlanner, WindowedImagePlanner
from spurmix.data.loader.sequence import SampleSequence
from spurmix.data.memory import check_pinning
from spurmix.data.sources.arrays import FeatureSource, ImageSource, Source
from spurmix.data.sources.tokens import TokenSource
from spurmix.data.sources.windowed import WindowedImages
from spurmix.ops.augment import Augment


@dataclass(frozen=True)
class BatchFormat:
    """Format of the batches of one rank.

    Attributes:
        count: Samples of a batch.
        dtype: Data type of the input.
        channels_last: Memory format of image inputs.
        augment: Augmentation of images.
        bucket: Batches per window of texts of similar length.
        steps: Batches of the run.
    """

    count: int
    dtype: torch.dtype
    channels_last: bool
    augment: Augment
    bucket: int
    steps: int


class BatchStrategy:
    """Chooses how batches of a source are made for a device.

    Args:
        source: Source of the examples.
        device: Device that batches are delivered to.
        batch_format: Format of the batches.
        pin_memory: Whether buffers on the CPU are pinned. None pins them if they are copied to a GPU.

    Attributes:
        gpu_reads_host: Whether the GPU reads pinned images in host memory.
        input_device: Device where batches are made.
        pin_memory: Whether buffers on the CPU are pinned.
        gathers: Whether images are copied unmixed and mixed on the GPU.
    """

    def __init__(
        self, source: Source, device: torch.device, batch_format: BatchFormat, pin_memory: bool | None
    ) -> None:
        self.source, self.device, self.format = source, device, batch_format
        self.gpu_reads_host = gpu_reads_host(source, device)
        self.input_device = device if self.gpu_reads_host else source.device
        copied = device.type == "cuda" and self.input_device.type == "cpu"
        self.pin_memory = copied if pin_memory is None else pin_memory
        if self.pin_memory:
            check_pinning()
        self.gathers = False
        self._shape: tuple[int, ...] = ()
        if isinstance(source, ImageSource):
            height, width, channels = source.shape
            self._shape = (channels, *batch_format.augment.output_size(height, width))
            item_bytes = math.prod(self._shape) * batch_format.dtype.itemsize
            self.gathers = copied and gathering_is_cheaper(source, item_bytes, batch_format.augment)
        elif isinstance(source, FeatureSource):
            self._shape = source.shape

    def input_writer(self, sequence: SampleSequence) -> InputWriter | InputPlanner:
        """Return the strategy that writes the input."""
        source, batch_format = self.source, self.format
        if isinstance(source, TokenSource):
            return TokenPlanner(
                source, sequence, batch_format.bucket, batch_format.steps, self._token_buffers(reusable=False)
            )
        if isinstance(source, FeatureSource):
            return FeatureWriter(source, self._buffers(reusable=False))
        if self.gathers:
            return GatherPlanner(
                source, sequence, batch_format.augment, batch_format.steps, self._gathered_buffers(reusable=False)
            )
        fresh = self._buffers(reusable=False)
        if isinstance(source, WindowedImages):
            return WindowedImagePlanner(source, sequence, batch_format.augment, batch_format.steps, fresh)
        return FusedImageWriter(source, sequence, batch_format.augment, fresh)

    def batch_maker(self, sequence: SampleSequence) -> BatchMaker:
        """Return the pipeline that makes batches of `sequence`."""
        return BatchMaker(sequence, self.input_writer(sequence))

    def reusable_buffers(self) -> Batch:
        """Allocate reusable buffers for one batch."""
        if isinstance(self.source, TokenSource):
            return self._token_buffers(reusable=True)(self.source.width(self.source.longest))
        return (self._gathered_buffers if self.gathers else self._buffers)(reusable=True)()

    def device_mixer(self) -> DeviceMixer:
        """Return a mixer that copies gathered images to the GPU and mixes them there, in fresh memory."""
        assert isinstance(self.source, ImageSource)
        return DeviceMixer(self.source, self.format.augment, self.format.count, self._device_input, self.device)

    def reusing_mixer(self, batches: int, reuse: bool) -> DeviceMixer:
        """Return a `device_mixer` that reuses `batches` buffers, or makes batches in fresh memory if `reuse` is False."""
        mixer = self.device_mixer()
        mixer.ring = BufferRing(mixer.new_batch if reuse else lambda: None, batches, ahead=False)
        return mixer

    def single_batches(self, sequence: SampleSequence) -> Callable[[int], Batch]:
        """Return a function that makes batch number `step` in fresh memory, on the loader's device."""
        maker = self.batch_maker(sequence)

        def make(step: int) -> Batch:
            batch = maker(step, None)
            return self.device_mixer()(batch).detached() if self.gathers else batch.to(self.device)

        return make

    def static_batch(self, sequence: SampleSequence, step: int) -> StaticBatch:
        """Return static buffers for the batches from number `step` on.

        Args:
            sequence: The sample sequence.
            step: Number of the first batch.

        Returns:
            The static batch.

        Raises:
            ValueError: If batches have no fixed memory.
        """
        obstacle = self._static_obstacle()
        if obstacle is not None:
            raise ValueError(f"static_batch: {obstacle}")
        write = partial(self.batch_maker(sequence).write_at, sequence.first)
        return StaticBatch(self.reusable_buffers(), write, self.device, sequence.batch_size, step)

    def _static_obstacle(self) -> str | None:
        """Explain why batches have no fixed memory, which a CUDA graph requires, or return None."""
        if isinstance(self.source, TokenSource):
            return "texts differ in length, so their batches have no fixed shape"
        if isinstance(self.source, WindowedImages):
            return "these images are read from their file ahead of each batch; map them into memory with window=0"
        if self.input_device != self.device:
            return (
                f"batches are made on {self.input_device} and copied to {self.device}; move the source there with "
                "source.to(device), or pin it with source.pinned()"
            )
        return None

    def _device_input(self) -> Tensor:
        batch_format = self.format
        return allocate(
            (batch_format.count, *self._shape),
            batch_format.dtype,
            False,
            channels_last=batch_format.channels_last,
            device=self.device,
        )

    def _buffers(self, reusable: bool) -> partial[Batch]:
        batch_format = self.format
        return partial(
            batch_buffers,
            batch_format.count,
            self._shape,
            batch_format.dtype,
            batch_format.channels_last,
            reusable,
            self.pin_memory and self.input_device.type == "cpu",
            self.input_device,
        )

    def _token_buffers(self, reusable: bool) -> partial[Batch]:
        assert isinstance(self.source, TokenSource)
        return partial(
            token_buffers,
            batch=self.format.count,
            reusable=reusable,
            pin_memory=self.pin_memory,
            padding_side=self.source.padding_side,
        )

    def _gathered_buffers(self, reusable: bool) -> partial[GatheredBatch]:
        assert isinstance(self.source, ImageSource)
        batch_format = self.format
        return partial(
            gathered_buffers, batch_format.count, self.source, batch_format.augment, reusable, self.pin_memory
        )
