"""Weights above the limit of an ONNX file: they are written to a second file, which the first one names."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from spurmix.core.temporary import remove_leftovers, remove_unlocked, temporary_file
from spurmix.deploy.model_file import DATA, DataFile

if TYPE_CHECKING:
    import onnx

MAX_FILE_BYTES = 2**31 - 2**24
"""Maximum size of the weights inside an ONNX file, which is one protobuf message of less than 2 GiB, with the graph."""
MIN_TENSOR_BYTES = 1024
"""Smaller tensors remain in the ONNX file."""
ALIGNMENT = 4096
"""Tensors begin at a multiple of this, so that ONNX Runtime can map them."""


class ExternalWeights:
    """The file with the weights of an exported model, if they are too large for one file.

    Its name contains the checksum of its contents. Both files are therefore replaced at once, by the rename of the ONNX
    file: until then, the existing ONNX file names the existing weights. The file is removed at the end, unless `keep` is
    called.

    Args:
        target: Final path of the ONNX file.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._written: Path | None = None
        self._existed = False
        self._stack = contextlib.ExitStack()
        self.metadata: dict[str, object] = {}

    def __enter__(self) -> ExternalWeights:
        remove_leftovers(self._unnamed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._written is not None and not self._existed:
            self._written.unlink(missing_ok=True)
        self._stack.close()

    @property
    def _unnamed(self) -> Path:
        return self._target.with_name(f"{self._target.name}.data")

    def move(self, proto: onnx.ModelProto) -> None:
        """Move the weights of a model to the file if the model exceeds the limit.

        Args:
            proto: The model. Its tensors name the file afterwards.

        Raises:
            OSError: If the file cannot be written.
        """
        tensors = [one for one in proto.graph.initializer if len(one.raw_data) >= MIN_TENSOR_BYTES]
        if sum(len(one.raw_data) for one in tensors) <= MAX_FILE_BYTES:
            return
        temporary = self._stack.enter_context(temporary_file(self._unnamed))  # locked until the end
        contents, offsets = hashlib.sha256(), []
        with temporary.open("r+b") as file:
            for tensor in tensors:
                padding = bytes(-file.tell() % ALIGNMENT)
                for part in (padding, tensor.raw_data):
                    file.write(part)
                    contents.update(part)
                offsets.append(file.tell() - len(tensor.raw_data))
            size = file.tell()
        name = f"{self._target.name}.{contents.hexdigest()[:16]}.data"
        for tensor, offset in zip(tensors, offsets, strict=True):
            entries = {"location": name, "offset": offset, "length": len(tensor.raw_data)}
            tensor.ClearField("raw_data")
            tensor.data_location = tensor.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
        described: DataFile = {"name": name, "bytes": size, "sha256": contents.hexdigest()}
        self.metadata = {DATA: described}
        final = self._target.with_name(name)
        self._existed = final.exists()
        temporary.replace(final)
        self._written = final

    def keep(self) -> None:
        """Keep the file, and remove those of earlier exports to the same path. Files of running exports are locked."""
        current = self._written.name if self._written is not None else ""
        self._written = None
        pattern = rf"(?!{re.escape(current)}$){re.escape(self._target.name)}\.[0-9a-f]{{16}}\.data"
        remove_unlocked(self._target.parent, re.compile(pattern))
