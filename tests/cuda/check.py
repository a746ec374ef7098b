"""Without a GPU: that `spurmix._cuda` was built, linked and loads beside a CUDA torch, that its kernels are registered,
and that they refuse bad arguments before anything is launched. Run by `make check-cuda`."""

from __future__ import annotations

import torch

import spurmix
from spurmix import GroupIndex, MixPolicy
from spurmix.ops import backends, library
from spurmix.ops.tables import draw_tables


def on_cuda(name: str) -> object:
    """The CUDA kernel of an op, called with whatever tensors: the dispatcher is passed by."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    operator = getattr(torch.ops.spurmix, name).default
    return lambda *args: operator.redispatch(keys, *args)


def refused(message: str, name: str, *args: object) -> None:
    said = "nothing"
    try:
        on_cuda(name)(*args)  # type: ignore[operator]
    except RuntimeError as error:
        said = str(error).splitlines()[0]
    if message not in said:
        raise AssertionError(f"{name} must refuse this ({message}), but said {said}")
    print(f"ok: {name} refuses: {said}")


def main() -> None:
    print(f"spurmix {spurmix.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    assert library.COMPILED_CUDA == "ok", library.COMPILED_CUDA
    from spurmix import _cuda

    assert _cuda.take_flag(0) == 0
    for name in library.OPERATORS:
        served = backends.serving("cuda")
        print(f"ok: {name} on a GPU by {served}")
        assert served == "cuda"

    tables = draw_tables(GroupIndex([0, 1, 0]), MixPolicy())
    two, lam = torch.zeros(2, dtype=torch.int64), torch.ones(2)
    refused("must be on a GPU", "draw", tables.packed, tables.members, 0, 0, 4)
    refused("on a GPU", "mix_rows", torch.zeros(2, 3), two, two, lam, torch.float32)
    refused("must be on a GPU", "mix_labels", two, two, lam, 3, torch.float32)
    refused("on a GPU", "mixed_cross_entropy", torch.zeros(2, 3), two, two, lam, 1, 0.0)
    refused("must be [B, C] on a GPU", "group_counts", torch.zeros(2), two, two, torch.zeros(1, 2, dtype=torch.int64))
    refused("num_classes must be 1 or more", "mix_labels", two, two, lam, 0, torch.float32)
    refused(
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
    refused("on a GPU", "mix_embeddings", words, ids, ids, lam, *no, -1, torch.float32)
    refused("on a GPU", "mix_embeddings_backward", torch.zeros(2, 5, 3), ids, ids, lam, *no, -1, 4, torch.float32)
    refused("on a GPU", "mix_embeddings_backward_rows", torch.zeros(2, 5, 3), ids, ids, lam, *no, -1, 4, torch.float32)
    block = (words, words, None, words[0], words[0], ids, ids, lam, *no, ids, None)
    refused("on a GPU", "mix_bert_embeddings", *block, 1e-5, -1, torch.float32)
    refused("count must be 0 or more", "draw", tables.packed, tables.members, 0, 0, -1)
    try:
        spurmix.functional.mix_rows(torch.zeros(2, 3), two, two, lam, backend="cuda")
    except ValueError as error:
        print(f"ok: on the CPU: {error}")
    else:
        raise AssertionError("backend='cuda' took tensors on the CPU")


if __name__ == "__main__":
    main()
