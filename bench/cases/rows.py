"""Mixing of feature rows."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import limits
from bench.context import Context
from bench.registry import Case, Contender, case
from spurmix import functional


def _case(batch: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50_000, 2048, generator=generator).to(dtype)
    index, partner = torch.randint(0, len(rows), (2, batch), generator=generator)
    lam = torch.rand(batch, generator=generator)
    out, theirs = (torch.zeros(batch, 2048, dtype=dtype) for _ in range(2))

    def eager() -> Tensor:
        weight = lam[:, None]
        return (weight * rows[index] + (1 - weight) * rows[partner]).to(dtype)

    compiled = torch.compile(
        lambda rows, i, j, lam, out: out.copy_(lam[:, None] * rows[i] + (1 - lam[:, None]) * rows[j]), dynamic=False
    )
    contenders = [
        Contender("spurmix", lambda: functional.mix_rows(rows, index, partner, lam, out=out), "ours"),
        Contender("torch.compile into out", lambda: compiled(rows, index, partner, lam, theirs)),
        Contender("eager", eager),
    ]
    absent = []
    if limits.library() is not None:
        contenders.append(limits.MemoryLimit(rows, index, partner, out, repeats=20).contender())
    else:
        absent.append(limits.UNAVAILABLE)
    return Case(contenders, items=batch, tolerance=1e-5 if dtype == torch.float32 else 4e-2, repeats=61, absent=absent)


@case("rows_256")
def rows_256(context: Context) -> Case:
    """Mix 256 rows of 2048 float32 features out of 50,000."""
    return _case(256, torch.float32)


@case("rows_256_bf16")
def rows_256_bf16(context: Context) -> Case:
    """Mix 256 rows of 2048 bfloat16 features out of 50,000."""
    return _case(256, torch.bfloat16)
