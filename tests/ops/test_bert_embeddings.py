"""BERT's embedding block on mixed tokens: every backend against float64 PyTorch, gradients, Hugging Face's own block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_embeddings import EACH, EMULATED, FLOATS, TOLERANCE, cuda_emulated, mixed, raise_flagged, tokens  # noqa: F401  # a fixture

from spurmix.ops import functional as F

NAMES = ("weight", "position_weight", "type_weight", "norm_weight", "norm_bias")


@pytest.fixture(params=["reference", "cpu", EMULATED, "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tables(rng: np.random.Generator, rows: int, length: int, columns: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = [(rows, columns), (length + 2, columns), (3, columns), (columns,), (columns,)]
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in shapes]


def block(found: list[Any], position_ids: Any, token_type_ids: Any, eps: float, **lookups: Any) -> torch.Tensor:
    """The contract's formula, in the dtype of the tables."""
    weight, position_weight, type_weight, norm_weight, norm_bias = found
    x = mixed(weight, **lookups) + position_weight[position_ids]
    if type_weight is not None:
        x = x + type_weight[token_type_ids]
    return torch.nn.functional.layer_norm(x, x.shape[2:], norm_weight, norm_bias, eps)


@EACH
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("plain", [False, True])
def test_output_and_gradients(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, plain: bool, rng: np.random.Generator
) -> None:
    rows, batch, length, columns = shape
    lookups = tokens(rng, rows, batch, length, not plain)
    found: list[Any] = [t.requires_grad_() for t in tables(rng, rows, length, columns, dtype)]
    if plain:
        position_ids, token_type_ids = torch.arange(length), torch.zeros(batch, length, dtype=torch.int64)
        given: Any = {}
        if length % 2:  # as in DistilBERT
            found[2] = None
    else:
        position_ids, token_type_ids = (torch.from_numpy(rng.integers(0, n, (batch, length))) for n in (length + 2, 3))
        given = dict(position_ids=position_ids, token_type_ids=token_type_ids)
    eps = 1e-3  # keeps one column's division by zero away
    given = dict(**lookups, **given, eps=eps, padding_idx=0, backend=backend)
    out = F.mix_bert_embeddings(*found, **given)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in found]
    expected = block(exact, position_ids, token_type_ids, eps, **lookups)
    assert out.dtype == dtype
    rounding = TOLERANCE[dtype] if dtype != torch.float32 else dict(rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(out, expected.to(dtype), **rounding)
    upstream = torch.from_numpy(rng.standard_normal(out.shape)).to(dtype)
    out.backward(upstream)
    expected.backward(upstream.double())
    exact[0].grad[0] = 0  # type: ignore[union-attr, index]
    for form in (dict(sparse=True), dict(grad_buffer=F.GradientBuffer())):
        again = F.mix_bert_embeddings(*found, **given, **form)
        assert torch.equal(again, out)
        (grad,) = torch.autograd.grad(again, found[0], upstream)
        assert grad.is_sparse == ("sparse" in form) and torch.equal(grad.to_dense(), found[0].grad)
    for name, table, wanted in zip(NAMES, found, exact, strict=True):
        if table is None or wanted is None:
            continue
        limit = 1e-9 if dtype == torch.float64 else 1e-3
        torch.testing.assert_close(
            table.grad,
            wanted.grad.to(dtype),
            rtol=max(1e-4, rounding["rtol"]),
            atol=limit,
            msg=lambda m, n=name: f"{n}: {m}",
        )


# The interpreter takes half a minute, the emulation of CUDA ten seconds more than what it adds.
@pytest.mark.parametrize("backend", ["reference", "cpu", pytest.param("triton", marks=pytest.mark.slow)])
def test_gradcheck(backend: str, rng: np.random.Generator) -> None:
    lookups = tokens(rng, 6, 3, 4, True)
    found = [t.requires_grad_() for t in tables(rng, 6, 4, 3, torch.float64)]

    def run(*found: torch.Tensor) -> torch.Tensor:
        return F.mix_bert_embeddings(*found, **lookups, eps=0.1, backend=backend)

    assert torch.autograd.gradcheck(run, found)
    assert torch.autograd.gradgradcheck(run, found)


@pytest.mark.parametrize("target", FLOATS, ids=str)
@pytest.mark.parametrize("source", FLOATS, ids=str)
def test_dtypes(backend: str, source: torch.dtype, target: torch.dtype, rng: np.random.Generator) -> None:
    lookups = tokens(rng, 9, 2, 3, True)
    found = tables(rng, 9, 3, 40, source)
    out = F.mix_bert_embeddings(*found, **lookups, eps=1e-3, dtype=target, backend=backend)
    position_ids, types = torch.arange(3), torch.zeros(2, 3, dtype=torch.int64)
    expected = block([t.double() for t in found], position_ids, types, 1e-3, **lookups)
    assert out.dtype == target
    coarse = target if target in (torch.float16, torch.bfloat16) else torch.promote_types(source, torch.float32)
    tolerance = TOLERANCE[coarse] if coarse != torch.float32 else dict(rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(out, expected.to(target), **tolerance)


def test_frozen_tables_get_no_gradient(rng: np.random.Generator) -> None:
    found = tables(rng, 9, 3, 8, torch.float32)
    found[3].requires_grad_()
    F.mix_bert_embeddings(*found, **tokens(rng, 9, 2, 3, True), grad_buffer=F.GradientBuffer()).sum().backward()
    assert [t.grad is not None for t in found] == [False, False, False, True, False]
    found[3].requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: pytest.fail("saved"), lambda t: t):
        F.mix_bert_embeddings(*found, **tokens(rng, 9, 2, 3, True))


def test_threads_do_not_change_the_gradients(rng: np.random.Generator) -> None:
    found = [t.requires_grad_() for t in tables(rng, 1000, 60, 200, torch.float32)]
    lookups = tokens(rng, 1000, 9, 60, True)
    upstream = torch.from_numpy(rng.standard_normal((9, 60, 200))).float()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(torch.autograd.grad(F.mix_bert_embeddings(*found, **lookups), found, upstream))
    finally:
        torch.set_num_threads(2)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_lam_of_one_is_the_block_of_transformers(backend: str, rng: np.random.Generator) -> None:
    from transformers.models.bert.modeling_bert import BertConfig, BertEmbeddings

    theirs = BertEmbeddings(BertConfig(vocab_size=50, hidden_size=32, max_position_embeddings=20)).eval()
    lookups = tokens(rng, 50, 4, 11, False)
    lookups["lam"][:] = 1
    types = torch.from_numpy(rng.integers(0, 2, (4, 11)))
    out = F.mix_bert_embeddings(
        theirs.word_embeddings.weight, theirs.position_embeddings.weight, theirs.token_type_embeddings.weight,
        theirs.LayerNorm.weight, theirs.LayerNorm.bias, **lookups, token_type_ids=types, eps=theirs.LayerNorm.eps,
        padding_idx=0, backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(out, theirs(lookups["ids"], types), rtol=1e-6, atol=1e-6)


TABLES = (torch.zeros(4, 3), torch.zeros(6, 3), torch.zeros(2, 3), torch.ones(3), torch.zeros(3))
IDS, LAM = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2)


def change(k: int, table: Any) -> tuple[Any, ...]:
    return (*TABLES[:k], table, *TABLES[k + 1 :])


@pytest.mark.parametrize(
    ("found", "options", "error", "text"),
    [
        (change(1, torch.zeros(6, 4)), {}, ValueError, "position_weight must have shape [P, 3]"),
        (change(1, torch.zeros(4, 3)), {}, ValueError, "ids must have at most 4 tokens (positions), got 5"),
        (change(1, None), {}, TypeError, "position_weight must be a tensor"),
        (change(2, torch.zeros(2, 3).half()), {}, TypeError, "type_weight must have dtype float32"),
        (change(2, torch.zeros(0, 3)), {}, ValueError, "type_weight must have at least one row"),
        (change(2, None), dict(token_type_ids=IDS), ValueError, "token_type_ids must be None if type_weight is None"),
        (change(3, torch.ones(4)), {}, ValueError, "norm_weight must have shape [3]"),
        (TABLES, dict(position_ids=torch.arange(4)), ValueError, "position_ids must have shape [5]"),
        (TABLES, dict(position_ids=IDS.int()), TypeError, "position_ids must have dtype int64"),
        (TABLES, dict(token_type_ids=IDS[:1]), ValueError, "token_type_ids must have shape [2, 5]"),
        (TABLES, dict(eps=-1.0), ValueError, "eps must be 0 or more"),
        (TABLES, dict(eps=float("nan")), ValueError, "eps must be 0 or more"),
        (TABLES, dict(position_ids=torch.arange(5) + 2), IndexError, "out of range"),
        (TABLES, dict(token_type_ids=IDS - 1), IndexError, "out of range"),
        ([t[..., :0] for t in TABLES], {}, ValueError, "at least one column"),
    ],
)  # fmt: skip
def test_bad_input(backend: str, found: Any, options: Any, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        out = F.mix_bert_embeddings(*found, IDS, IDS, LAM, **options, backend=backend)
        assert backend == "cuda" and out.isnan().any()
        raise_flagged()
    assert text in str(caught.value)
