"""The processes of a training job: those of torchrun or `accelerate launch`, or this process alone."""

from __future__ import annotations

import torch

from spurmix.core.launcher import end_with_launcher
from spurmix.train.process import lost_process_named


class Processes:
    """This process and the others of its job, set up by Accelerate.

    Args:
        device: "auto", "cpu" or "cuda".

    Attributes:
        rank: Number of this process.
        count: Number of processes.
        device: Device of this process.
        main: Whether this process writes files and prints.

    Raises:
        ValueError: If CUDA is requested but not available.
    """

    def __init__(self, device: str = "auto") -> None:
        from accelerate import PartialState

        end_with_launcher()

        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: CUDA is not available; use auto or cpu")
        state = PartialState(cpu=device == "cpu")
        self.rank, self.count = int(state.process_index), int(state.num_processes)
        self.device: torch.device = state.device
        self.main = self.rank == 0

    @property
    def progress(self) -> bool | None:
        """Whether this process shows progress bars. None: only on a terminal."""
        return None if self.main else False

    def wait(self) -> None:
        """Wait until all processes call this method."""
        if torch.distributed.is_initialized():
            with lost_process_named():
                torch.distributed.barrier()

    def leave(self) -> None:
        """Wait for all processes, then close the process group."""
        # A process that ends while the threads of gloo are running may abort.
        self.wait()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
