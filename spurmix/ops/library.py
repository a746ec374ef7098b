"""Registration of the operators with PyTorch: schemas, reference, compiled kernels, fake kernels and gradients.

`OPERATORS` lists what each operator consists of. The reference is registered for all devices, and compiled kernels and
Triton kernels take precedence over it on their devices.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch

from spurmix import _build_stamp
from spurmix.ops import fake
from spurmix.ops.gradients import cross_entropy as cross_entropy_gradient
from spurmix.ops.gradients import embeddings as embeddings_gradient
from spurmix.ops.gradients import mix_rows as mix_rows_gradient
from spurmix.ops.reference import cross_entropy, draw, embeddings, group_counts, mix_images, mix_rows
from spurmix.ops.schema import SCHEMAS

Kernel: TypeAlias = Callable[..., Any]
"""An implementation of an operator. It takes the arguments of the schema."""


class Operator(NamedTuple):
    """The parts of an operator that are the same on all backends.

    Attributes:
        reference: Implementation in PyTorch.
        fake: Function that returns results of the right shape and dtype.
        setup_context: Function that keeps the inputs for the backward pass. None if the operator has no gradient.
        backward: Backward pass.
    """

    reference: Kernel
    fake: Kernel = fake.nothing
    setup_context: Callable[..., None] | None = None
    backward: Kernel | None = None


OPERATORS: dict[str, Operator] = {
    "draw": Operator(draw.draw, fake.draw),
    "draw_out": Operator(draw.draw_out),
    "mix_images": Operator(mix_images.mix_images, fake.mix_images),
    "mix_images_out": Operator(mix_images.mix_images_out),
    "mix_image_batch": Operator(mix_images.mix_image_batch, fake.mix_image_batch),
    "mix_image_batch_out": Operator(mix_images.mix_image_batch_out),
    "mix_rows": Operator(mix_rows.mix_rows, fake.mix_rows, mix_rows_gradient.setup_context, mix_rows_gradient.backward),
    "mix_rows_out": Operator(mix_rows.mix_rows_out),
    "mix_labels": Operator(cross_entropy.mix_labels, fake.mix_labels),
    "mix_labels_out": Operator(cross_entropy.mix_labels_out),
    "mixed_cross_entropy": Operator(
        cross_entropy.mixed_cross_entropy,
        fake.mixed_cross_entropy,
        cross_entropy_gradient.setup_context,
        cross_entropy_gradient.backward,
    ),
    "mixed_cross_entropy_with_grad": Operator(
        cross_entropy.mixed_cross_entropy_with_grad, fake.mixed_cross_entropy_with_grad
    ),
    "mixed_cross_entropy_backward": Operator(
        cross_entropy.mixed_cross_entropy_backward, fake.mixed_cross_entropy_backward
    ),
    "group_counts": Operator(group_counts.group_counts),
    "mix_embeddings": Operator(
        embeddings.mix_embeddings,
        fake.mix_embeddings,
        embeddings_gradient.mix_setup_context,
        embeddings_gradient.mix_backward,
    ),
    "mix_embeddings_out": Operator(embeddings.mix_embeddings_out),
    "mix_embeddings_backward": Operator(
        embeddings.mix_embeddings_backward,
        fake.mix_embeddings_backward,
        embeddings_gradient.transpose_setup_context,
        embeddings_gradient.transpose_backward,
    ),
    "mix_embeddings_backward_out": Operator(embeddings.mix_embeddings_backward_out),
    "mix_embeddings_backward_rows": Operator(
        embeddings.mix_embeddings_backward_rows, fake.mix_embeddings_backward_rows
    ),
    "mix_bert_embeddings": Operator(
        embeddings.mix_bert_embeddings,
        fake.mix_bert_embeddings,
        embeddings_gradient.bert_setup_context,
        embeddings_gradient.bert_backward,
    ),
    "mix_bert_embeddings_backward": Operator(
        embeddings.mix_bert_embeddings_backward, fake.mix_bert_embeddings_backward
    ),
}
"""Every operator by its name in `schema.py`."""

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed. It is imported on first use."""


def differentiable(name: str, kernels: Mapping[str, Kernel]) -> Kernel:
    """Return kernel `name` of a set that is not registered with the dispatcher, with the operator's gradient."""
    if name == "mix_rows":
        return functools.partial(mix_rows_gradient.MixRowsOnBackend.apply, kernels[name])
    if name == "mixed_cross_entropy":
        return functools.partial(cross_entropy_gradient.LossOnBackend.apply, kernels)
    return kernels[name]


def triton_kernel(name: str) -> Kernel:
    """Return the Triton kernel of an operator, with its gradient. The first call compiles it, which takes seconds."""
    return differentiable(name, _triton_kernels(name))


def _triton_kernels(name: str) -> Mapping[str, Kernel]:
    """The Triton kernels of the file that has operator `name`."""
    from spurmix.kernels import launch, launch_embeddings

    return launch_embeddings.KERNELS if name in launch_embeddings.KERNELS else launch.KERNELS


def _import_triton_on_call(name: str) -> Kernel:
    def run(*args: object, **options: object) -> object:
        return _triton_kernels(name)[name](*args, **options)

    return run


def _load_compiled(module: str) -> str:
    """Import a compiled module, which registers its kernels. Returns "ok" or why it cannot be used."""
    status = str(_build_stamp.status().get(module, "missing"))
    if status != "ok":
        return status
    try:
        importlib.import_module(f"spurmix.{module}")
    except (ImportError, OSError) as error:
        return f"cannot be loaded: {error}"
    return "ok"


def _check_cpu_isa() -> str:
    """Why SPURMIX_CPU_ISA is invalid, or "". Calls raise it, because a failed import could not be repeated."""
    if COMPILED_CPU != "ok":
        return ""
    try:
        importlib.import_module("spurmix._C").isa()
    except RuntimeError as error:
        return str(error)
    return ""


def _register(library: torch.library.Library) -> None:
    use_triton = torch.version.cuda is not None and HAS_TRITON and COMPILED_CUDA != "ok"
    for name, operator in OPERATORS.items():
        library.impl(name, operator.reference, "CompositeExplicitAutograd")
        if use_triton:
            library.impl(name, _import_triton_on_call(name), "CUDA")
        torch.library.register_fake(f"spurmix::{name}", operator.fake, lib=library)
        if operator.backward is not None:
            torch.library.register_autograd(
                f"spurmix::{name}", operator.backward, setup_context=operator.setup_context, lib=library
            )


_library = torch.library.Library("spurmix", "DEF")
for _schema in SCHEMAS:
    _library.define(_schema)

COMPILED_CPU: str = _load_compiled("_C")
"""Whether the compiled CPU kernels are used: "ok", or what is wrong and how to build them."""
COMPILED_CUDA: str = _load_compiled("_cuda") if torch.version.cuda is not None else "this torch is built without CUDA"
"""Whether the compiled CUDA kernels are used. `_cuda` has a kernel for every operator."""
CPU_ISA_ERROR: str = _check_cpu_isa()

_register(_library)

if COMPILED_CPU != "ok":
    warnings.warn(
        f"spurmix: the compiled CPU kernels are not used ({COMPILED_CPU}); the reference is much slower",
        RuntimeWarning,
        stacklevel=2,
    )
