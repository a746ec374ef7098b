"""Registration: schemas, the reference as fallback kernel, compiled kernels, fake kernels and autograd, once for all."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spurmix import _build_stamp
from spurmix.ops import library_text, reference
from spurmix.ops.schema import SCHEMAS

_library = torch.library.Library("spurmix", "DEF")


def _draw_out(tables: Tensor, members: Tensor, seed: int, start: int, counter: Tensor | None, *out: Tensor) -> None:
    for target, value in zip(out, reference.draw(tables, members, seed, start, out[0].numel(), counter), strict=True):
        target.copy_(value)


def _mix_images_out(*args: Any) -> None:
    inputs, out = args[:8], args[8]
    mix: Callable[..., Tensor] = reference.mix_images
    out.copy_(mix(*inputs, out.shape[2], out.shape[3], out.dtype, False))


def _mix_image_batch_out(*args: Any) -> None:
    inputs, counter, out = args[:14], args[14], args[15:]
    first = out[0]
    mix: Callable[..., tuple[Tensor, ...]] = reference.mix_image_batch
    made = mix(*inputs, first.shape[0], first.shape[2], first.shape[3], first.dtype, False, counter)
    for target, value in zip(out, made, strict=True):
        target.copy_(value)


def _mix_rows_out(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, out: Tensor) -> None:
    out.copy_(reference.mix_rows(rows, index, partner, lam, out.dtype))


def _mix_labels_out(label: Tensor, partner_label: Tensor, lam: Tensor, out: Tensor) -> None:
    out.copy_(reference.mix_labels(label, partner_label, lam, out.shape[1], out.dtype))


REFERENCE: dict[str, Callable[..., Any]] = {
    "draw": reference.draw,
    "draw_out": _draw_out,
    "mix_images": reference.mix_images,
    "mix_images_out": _mix_images_out,
    "mix_image_batch": reference.mix_image_batch,
    "mix_image_batch_out": _mix_image_batch_out,
    "mix_rows": reference.mix_rows,
    "mix_rows_out": _mix_rows_out,
    "mix_labels": reference.mix_labels,
    "mix_labels_out": _mix_labels_out,
    "mixed_cross_entropy": reference.mixed_cross_entropy,
    "mixed_cross_entropy_with_grad": reference.mixed_cross_entropy_with_grad,
    "mixed_cross_entropy_backward": reference.mixed_cross_entropy_backward,
    "group_counts": reference.group_counts,
    **library_text.REFERENCE,
}


def _fresh(like: Tensor, shape: tuple[Any, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)


def _fake_draw(
    tables: Tensor, members: Tensor, seed: int, start: int, count: int, counter: Tensor | None = None
) -> Any:
    kinds = (torch.int64, torch.int64, torch.float32, torch.int64)
    return tuple(_fresh(tables, (count,), kind) for kind in kinds)


def _fake_mix_images(images: Tensor, index: Tensor, *args: Any) -> Tensor:
    height, width, dtype, channels_last = args[-4:]
    return _fresh(index, (index.shape[0], images.shape[3], height, width), dtype, channels_last)


def _fake_mix_image_batch(images: Tensor, labels: Tensor, *args: Any, counter: Tensor | None = None) -> Any:
    count, height, width, dtype, channels_last = args[12:17]
    mixed = _fresh(labels, (count, images.shape[3], height, width), dtype, channels_last)
    kinds = (torch.int64, torch.int64, torch.float32, torch.int64, torch.int64, torch.int64)
    return mixed, *(_fresh(labels, (count,), kind) for kind in kinds)


def _fake_mix_rows(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, dtype: torch.dtype) -> Tensor:
    return _fresh(rows, (index.shape[0], rows.shape[1]), dtype)


def _fake_mix_labels(label: Tensor, partner_label: Tensor, lam: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    return _fresh(label, (label.shape[0], num_classes), dtype)


def _fake_cross_entropy(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    batch = (logits.shape[0],)
    return _fresh(logits, batch if reduction == reference.NONE else (), wide), _fresh(logits, batch, wide)


def _fake_cross_entropy_with_grad(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _fake_cross_entropy(logits, *args)[0], _fresh(logits, tuple(logits.shape), logits.dtype)


def _fake_cross_entropy_backward(grad: Tensor, logits: Tensor, *args: Any) -> Tensor:
    return _fresh(logits, tuple(logits.shape), logits.dtype)


def _fake_nothing(*args: Any) -> None:
    return None


_FAKE = {
    "draw": _fake_draw,
    "mix_images": _fake_mix_images,
    "mix_image_batch": _fake_mix_image_batch,
    "mix_rows": _fake_mix_rows,
    "mix_labels": _fake_mix_labels,
    "mixed_cross_entropy": _fake_cross_entropy,
    "mixed_cross_entropy_with_grad": _fake_cross_entropy_with_grad,
    "mixed_cross_entropy_backward": _fake_cross_entropy_backward,
    **library_text.FAKE,
}


def _rows_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, index, partner, lam, _ = inputs
    ctx.save_for_backward(rows, index, partner, lam)


def _rows_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _rows_gradients(ctx, grad, ctx.needs_input_grad)


def _rows_gradients(ctx: Any, grad: Tensor, needed: tuple[bool, ...]) -> tuple[Any, ...]:
    rows, index, partner, lam = ctx.saved_tensors
    wide = torch.promote_types(rows.dtype, torch.float32)
    grad, weight = grad.to(wide), lam.to(wide)[:, None]
    grad_rows = grad_lam = None
    if needed[0]:
        grad_rows = torch.zeros(rows.shape, dtype=wide, device=rows.device)
        grad_rows = (
            grad_rows.index_add(0, index, weight * grad).index_add(0, partner, (1 - weight) * grad).to(rows.dtype)
        )
    if needed[3]:
        grad_lam = (grad * (rows[index].to(wide) - rows[partner].to(wide))).sum(dim=1).to(lam.dtype)
    return grad_rows, None, None, grad_lam, None


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, label, partner_label, lam, ctx.reduction, ctx.label_smoothing = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, output[1], label, partner_label, lam)


def differentiable_loss_gradient(grad: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    """The gradient of mixed_cross_entropy as a function that can be differentiated again, by the reference."""
    loss = reference.mixed_cross_entropy(logits, *rest)[0]
    return torch.autograd.grad(loss, logits, grad, create_graph=True)[0]


def _loss_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    logits, logsumexp, label, partner_label, lam = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        settings = (label, partner_label, lam, ctx.reduction, ctx.label_smoothing)
        return differentiable_loss_gradient(grad, logits, *settings), None, None, None, None, None
    grad_logits = torch.ops.spurmix.mixed_cross_entropy_backward(
        grad, logits, logsumexp, label, partner_label, lam, ctx.reduction, ctx.label_smoothing
    )
    return grad_logits, None, None, None, None, None


HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed; it is imported on first use."""


class _Rows(torch.autograd.Function):
    """mix_rows on a pinned backend: its kernel, with the gradient all backends share."""

    @staticmethod
    def forward(ctx: Any, kernel: Callable[..., Tensor], *inputs: Any) -> Tensor:
        _rows_setup(ctx, inputs, None)  # type: ignore[arg-type]  # the output is not looked at
        return kernel(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, *_rows_gradients(ctx, grad, ctx.needs_input_grad[1:])


class _Loss(torch.autograd.Function):
    """mixed_cross_entropy on a pinned backend, whose kernels make both passes."""

    @staticmethod
    def forward(ctx: Any, kernels: dict[str, Callable[..., Any]], *inputs: Any) -> tuple[Tensor, Tensor]:
        output = kernels["mixed_cross_entropy"](*inputs)
        ctx.kernels = kernels
        _loss_setup(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, *_loss_backward(ctx, grad, _)
        logits, logsumexp, *rest = ctx.saved_tensors
        backward = ctx.kernels["mixed_cross_entropy_backward"]
        return None, backward(grad, logits, logsumexp, *rest, ctx.reduction, ctx.label_smoothing), *[None] * 5


def differentiable(name: str, kernels: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Kernel `name` of a set that serves the ops outside the dispatcher, differentiable like the op."""
    if name == "mix_rows":
        return functools.partial(_Rows.apply, kernels[name])
    if name == "mixed_cross_entropy":
        return functools.partial(_Loss.apply, kernels)
    return kernels[name]


def triton_kernel(name: str) -> Callable[..., Any]:
    """The Triton implementation of an op, differentiable like the op. The first call compiles, for seconds."""
    return differentiable(name, _triton_kernels(name))


def _triton_kernels(name: str) -> dict[str, Callable[..., Any]]:
    """The launchers of the file that has op `name`."""
    from spurmix.kernels import launch, launch_embeddings

    return launch_embeddings.KERNELS if name in launch_embeddings.KERNELS else launch.KERNELS


def _on_gpu(name: str) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        return _triton_kernels(name)[name](*args, **options)

    return run


def _load_compiled(module: str) -> str:
    """Load a compiled module, which registers its kernels; "ok" or why it is not there."""
    status = str(_build_stamp.status().get(module, "missing"))
    if status != "ok":
        return status
    try:
        importlib.import_module(f"spurmix.{module}")
    except (ImportError, OSError) as error:
        return f"cannot be loaded: {error}"
    return "ok"


def _cpu_isa_error() -> str:
    """Why SPURMIX_CPU_ISA cannot be followed, "" where it can. Calls say so: this import could not be repeated."""
    if COMPILED_CPU != "ok":
        return ""
    try:
        importlib.import_module("spurmix._C").isa()
    except RuntimeError as error:
        return str(error)
    return ""


def has_cuda_kernel(name: str) -> bool:
    """Whether op `name` has a compiled CUDA kernel here."""
    return COMPILED_CUDA == "ok" and name not in _served_by_triton


for _schema in SCHEMAS:
    _library.define(_schema)

COMPILED_CPU: str = _load_compiled("_C")
"""Whether the compiled CPU kernels serve `torch.ops.spurmix`: "ok", or what is wrong and how to build them."""
CPU_ISA_ERROR: str = _cpu_isa_error()
COMPILED_CUDA: str = _load_compiled("_cuda") if torch.version.cuda is not None else "this torch is built without CUDA"
"""The same of the compiled CUDA kernels."""
_served_by_triton: set[str] = set()  # on CUDA tensors

for _name, _function in REFERENCE.items():
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    if torch.version.cuda is None or torch._C._dispatch_has_kernel_for_dispatch_key(f"spurmix::{_name}", "CUDA"):
        continue
    if HAS_TRITON:
        _library.impl(_name, _on_gpu(_name), "CUDA")
        _served_by_triton.add(_name)
for _schema in SCHEMAS:
    _name = _schema.split("(", 1)[0]
    torch.library.register_fake(f"spurmix::{_name}", _FAKE.get(_name, _fake_nothing), lib=_library)
torch.library.register_autograd("spurmix::mix_rows", _rows_backward, setup_context=_rows_setup, lib=_library)
torch.library.register_autograd("spurmix::mixed_cross_entropy", _loss_backward, setup_context=_loss_setup, lib=_library)
for _name, (_setup, _backward) in library_text.AUTOGRAD.items():
    torch.library.register_autograd(f"spurmix::{_name}", _backward, setup_context=_setup, lib=_library)

if COMPILED_CPU != "ok":
    warnings.warn(
        f"spurmix: compiled CPU kernels are not in use ({COMPILED_CPU}); the much slower reference runs instead",
        RuntimeWarning,
        stacklevel=2,
    )
