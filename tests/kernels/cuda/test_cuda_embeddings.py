"""CUDA kernels of token embeddings, in cases beyond `test_embeddings.py` and `test_bert_embeddings.py`: vectorized and scalar
access, rows that many tokens share, long rows, and gradients of ids out of range."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from comparison import FLOATS, TOLERANCE, close, pairs

from spurmix.ops import device_errors, library
from spurmix.ops import functional as F
from spurmix.ops.reference.embeddings import mix_bert_embeddings, mix_bert_embeddings_backward

WIDE = [*FLOATS, torch.float64]


@pytest.mark.parametrize("kind", WIDE, ids=str)
def test_mix_embeddings_with_and_without_vectorized_access(
    cuda: Any, kind: torch.dtype, rng: np.random.Generator
) -> None:
    table = torch.from_numpy(rng.standard_normal((18, 64))).to(kind)
    ids, partner = (torch.from_numpy(rng.integers(0, 9, (3, 5))) for _ in range(2))
    masks = [torch.from_numpy(rng.random(ids.shape) < 0.7) for _ in range(2)]
    # Rows of whole 16-byte vectors with a stride; rows that are not aligned; a width that is not a multiple of a vector.
    for weight, out in itertools.product((table[::2, :48], table[::2, 1:49], table[::2, :47]), WIDE):
        given = (weight, ids, partner, pairs(rng, 9, 3)[2], *masks)
        expected = F.mix_embeddings(*given, dtype=out, backend="reference")
        actual = F.mix_embeddings(*given, dtype=out, backend="cuda")
        torch.testing.assert_close(actual, expected, **TOLERANCE[max(kind, out, key=lambda d: TOLERANCE[d]["rtol"])])


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("columns", [8, 17])
def test_rows_that_many_tokens_share(
    cuda: Any, built: Any, dtype: torch.dtype, columns: int, rng: np.random.Generator
) -> None:
    """Entries are summed in pieces, some of which span several rows. Rows begin and end inside pieces."""
    rows = 7
    ids = torch.from_numpy(rng.choice(rows, (6, 50), p=[0.7, 0.2, 0.0, 0.04, 0.03, 0.03, 0.0]))
    masks = [torch.from_numpy(rng.random(ids.shape) < 0.9) for _ in range(2)]
    lookups = (ids, ids.flip(1), pairs(rng, 1, 6)[2], *masks)
    grad = torch.from_numpy(rng.standard_normal((*ids.shape, columns))).to(dtype)
    names = ("mix_embeddings_backward", "mix_embeddings_backward_rows")
    for out, padding in itertools.product(dict.fromkeys((torch.float32, torch.float64, dtype)), (-1, 1)):
        given = (grad, *lookups, padding, rows, out)
        expected, (row, values) = (library.OPERATORS[name].reference(*given) for name in names)
        actual, (found_row, found) = (built[1][name](*given) for name in names)
        tolerance = {**TOLERANCE[out], "atol": 1e-11 if out == torch.float64 else 5e-5}
        torch.testing.assert_close(actual, expected, **tolerance)
        assert torch.equal(found_row, row)
        torch.testing.assert_close(found, values, **tolerance)
        assert torch.equal(actual, built[1][names[0]](*given)) and torch.equal(actual[row], found)


def test_long_rows_of_bert_embeddings(cuda: Any, built: Any, rng: np.random.Generator) -> None:
    """Rows that a block processes, within its registers and beyond them, with and without vectorized access."""
    for dtype, columns in itertools.product((torch.float32, torch.float64, torch.bfloat16), (1032, 2051, 2056)):
        shapes = ((9, columns), (4, columns), (2, columns), (columns,), (columns,))
        weight, *tables = (torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in shapes)
        ids, partner = (torch.from_numpy(rng.integers(0, 9, (3, 6))) for _ in range(2))
        masks = [torch.from_numpy(rng.random(ids.shape) < 0.7) for _ in range(2)]
        lookups = (ids, partner, pairs(rng, 1, 3)[2], *masks, ids % 4, ids % 2)
        forward = (weight, *tables, *lookups, 1e-5, -1, dtype)
        expected = mix_bert_embeddings(*forward)
        for a, b in zip(built[1]["mix_bert_embeddings"](*forward), expected, strict=True):
            close(a, b)
        grad = torch.from_numpy(rng.standard_normal(expected[0].shape)).to(dtype)
        backward = (grad, weight, *tables[:3], *lookups, *expected[1:])
        expected_gradients = mix_bert_embeddings_backward(*backward)
        for a, b in zip(built[1]["mix_bert_embeddings_backward"](*backward), expected_gradients, strict=True):
            torch.testing.assert_close(
                a, b, **{**TOLERANCE[a.dtype], "atol": 1e-10 if a.dtype == torch.float64 else 2e-5}
            )


def test_gradients_report_ids_out_of_range_and_do_not_follow_them(cuda: ModuleType, built: Any) -> None:
    grad, lam = torch.ones(1, 2, 3), torch.ones(1)
    ids = torch.tensor([[0, 1]])
    for bad in (4, -1, 2**62):
        wrong = torch.tensor([[0, bad]])
        for pair in ((wrong, ids), (ids, wrong)):
            found = built[1]["mix_embeddings_backward"](grad, *pair, lam, None, None, -1, 4, torch.float32)
            assert found[0].eq(1).all() and found[2:].eq(0).all() and cuda.take_flag(0) == device_errors.BAD_INDEX
