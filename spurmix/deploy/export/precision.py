"""The precision in which a model is exported: float32 where the model accepts it, else the dtypes of the model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spurmix.data.sources.arrays import Source
from spurmix.deploy.export.errors import ExportError, first_line
from spurmix.train.models import device_of, logits_of, modes_kept
from spurmix.train.text import apply

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message  # type: ignore[import-untyped]

CAST_ADVICE = "remove casts such as x.half(), x.to(torch.bfloat16) and torch.autocast from forward"


def check_dtypes(model: nn.Module) -> None:
    """Raise a ValueError if a parameter or buffer has a dtype that ONNX Runtime does not compute with."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"model: {name} has dtype {tensor.dtype}, which cannot be exported; use a float32 model")


def runnable_model(model: nn.Module, source: Source) -> tuple[nn.Module, int]:
    """Find the precision in which a model can be exported.

    A model of another precision is converted to float32. A model that casts to its own dtype in its forward method does
    not run in float32, and is not converted.

    Args:
        model: The model.
        source: Held-out examples. The model runs on the first ones, float32.

    Returns:
        The model or a float32 copy, and its number of classes.

    Raises:
        TypeError: If the model does not return real logits.
        ValueError: If the logits have a wrong shape.
        ExportError: If the model cannot compute logits in float32 or in its own dtypes.
    """
    dtypes = {one.dtype for one in (*model.parameters(), *model.buffers()) if one.is_floating_point()}
    if dtypes - {torch.float32}:
        converted = copy.deepcopy(model).float()
        try:
            return converted, _first_classes(converted, source)
        except Exception:  # models raise errors of any type
            del converted
    try:
        return model, _first_classes(model, source)
    except RuntimeError as error:
        own = ", ".join(sorted(map(_name, dtypes))) or "none"
        raise ExportError(
            f"{type(model).__name__} cannot compute logits of inputs from this source: {first_line(error)} (dtypes of "
            f"its weights: {own}); if dtypes do not match, {CAST_ADVICE}"
        ) from error


def _first_classes(model: nn.Module, source: Source) -> int:
    """Run a model on the first examples and return its number of classes."""
    index = torch.arange(min(3, len(source)))
    with modes_kept(model), torch.inference_mode():
        model.eval()
        logits = logits_of(apply(model, source.gather(index).to(device_of(model))))
    if logits.is_complex():
        raise TypeError(f"the model must return real logits, got {_name(logits.dtype)}")
    if logits.ndim != 2 or len(logits) != len(index):
        raise ValueError(f"the model must return logits [B, C], got shape {list(logits.shape)} for B = {len(index)}")
    return logits.shape[1]


def float_logits(output: object) -> Tensor:
    """Return the logits in the output of a model, float32."""
    logits = logits_of(output)
    return logits if logits.dtype == torch.float32 else logits.float()


def precision_note(proto: onnx.ModelProto) -> str:
    """Describe the precisions other than float32 in which a graph computes. Empty if there is none."""
    import onnx

    names = {onnx.TensorProto.DataType.Name(number).lower() for number in _dtypes(proto.graph)}
    others = sorted(name for name in names if name.startswith(("bfloat", "double", "float")) and name != "float")
    if not others:
        return ""
    return f"the graph computes in {', '.join(others).replace('double', 'float64')}: {CAST_ADVICE}"


def _dtypes(message: Message) -> set[int]:
    """Collect the dtypes of all values and constants of a graph."""
    found = set()
    for field, value in message.ListFields():
        if field.name in ("elem_type", "data_type"):
            found.add(value)
        elif field.message_type is not None:
            for part in value if hasattr(value, "add") else (value,):
                found |= _dtypes(part)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
