"""Checks `spurmix._cuda` without a GPU: it loads with a CUDA build of torch, and its kernels are registered and reject
invalid arguments before a launch. `make check-cuda` runs it."""

from __future__ import annotations

import torch

import spurmix
from spurmix import GroupIndex, MixPolicy
from spurmix.ops import backends, library
from spurmix.ops.tables import draw_tables


def on_cuda(name: str) -> object:
    """The CUDA kernel of an op, callable with tensors on any device, because it bypasses the dispatcher."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    operator = getattr(torch.ops.spurmix, name).default
    return lambda *args: operator.redispatch(keys, *args)


def check_rejected(message: str, name: str, *args: object) -> None:
    """Check that an op raises an error that contains `message`."""
    raised = "no error"
    try:
        on_cuda(name)(*args)  # type: ignore[operator]
    except RuntimeError as error:
        raised = str(error).splitlines()[0]
    if message not in raised:
        raise AssertionError(f"{name} must raise {message!r}, but raised {raised!r}")
    print(f"ok: {name} raises: {raised}")


def main() -> None:
    print(f"spurmix {spurmix.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    assert library.COMPILED_CUDA == "ok", library.COMPILED_CUDA
    from spurmix import _cuda

    assert _cuda.take_flag(0) == 0
    for name in library.OPERATORS:
        served = backends.serving("cuda")
        print(f"ok: on a GPU, {name} is served by {served}")
        assert served == "cuda"

    tables = draw_tables(GroupIndex([0, 1, 0]), MixPolicy())
    two, lam = torch.zeros(2, dtype=torch.int64), torch.ones(2)
    check_rejected("must be on a GPU", "draw", tables.packed, tables.members, 0, 0, 4)
    check_rejected("on a GPU", "mix_rows", torch.zeros(2, 3), two, two, lam, torch.float32)
    check_rejected("must be on a GPU", "mix_labels", two, two, lam, 3, torch.float32)
    check_rejected("on a GPU", "mixed_cross_entropy", torch.zeros(2, 3), two, two, lam, 1, 0.0)
    check_rejected(
        "must be [B, C] on a GPU", "group_counts", torch.zeros(2), two, two, torch.zeros(1, 2, dtype=torch.int64)
    )
    check_rejected("num_classes must be 1 or more", "mix_labels", two, two, lam, 0, torch.float32)
    check_rejected(
        "images must be [N, H, W, C]",
        "mix_images",
        lam,
        two,
        two,
        lam,
        lam,
        lam,
        None,
        None,
        1,
        1,
        torch.float32,
        False,
    )
    words, ids, no = torch.zeros(4, 3), torch.zeros(2, 5, dtype=torch.int64), (None, None)
    check_rejected("on a GPU", "mix_embeddings", words, ids, ids, lam, *no, -1, torch.float32)
    check_rejected(
        "on a GPU", "mix_embeddings_backward", torch.zeros(2, 5, 3), ids, ids, lam, *no, -1, 4, torch.float32
    )
    check_rejected(
        "on a GPU", "mix_embeddings_backward_rows", torch.zeros(2, 5, 3), ids, ids, lam, *no, -1, 4, torch.float32
    )
    block = (words, words, None, words[0], words[0], ids, ids, lam, *no, ids, None)
    check_rejected("on a GPU", "mix_bert_embeddings", *block, 1e-5, -1, torch.float32)
    check_rejected("count must be 0 or more", "draw", tables.packed, tables.members, 0, 0, -1)
    try:
        spurmix.functional.mix_rows(torch.zeros(2, 3), two, two, lam, backend="cuda")
    except ValueError as error:
        print(f"ok: CPU tensors are rejected: {error}")
    else:
        raise AssertionError("backend='cuda' accepted CPU tensors")


if __name__ == "__main__":
    main()
