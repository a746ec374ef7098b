"""Operators on token embeddings: every backend is compared with a float64 model. Gradients in every form, invalid input."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from emulated import cuda_emulated, raise_flagged  # noqa: F401  # a fixture, by its name

from spurmix.ops import functional as F

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
TOLERANCE: dict[torch.dtype, Any] = {
    torch.float32: dict(rtol=2e-6, atol=4e-6),
    torch.float16: dict(rtol=2.0**-10, atol=1e-5),
    torch.bfloat16: dict(rtol=2.0**-7, atol=1e-5),
    torch.float64: dict(rtol=1e-12, atol=1e-12),
}
SHAPES = [(1, 1, 1, 1), (7, 3, 5, 17), (9, 2, 3, 700), (3, 2, 0, 8), (5, 1, 1, 16), (40, 4, 6, 64), (3, 0, 4, 8),
          (300, 9, 33, 48)]  # fmt: skip
# rows, batch, length, columns. The others take seconds in the interpreter of Triton and the emulation of CUDA.
FEWER = {"triton": 4, "cuda": 7}
EMULATED = pytest.param("cuda", marks=pytest.mark.kernels)
CASES = [
    pytest.param(b, s, marks=[pytest.mark.kernels] if b == "cuda" else [])
    for b in ("reference", "cpu", "cuda", "triton") for s in SHAPES[: FEWER.get(b)]
]  # fmt: skip
EACH = pytest.mark.parametrize(("backend", "shape"), CASES, ids=lambda value: str(value))


@pytest.fixture(params=["reference", "cpu", EMULATED, "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tokens(rng: np.random.Generator, rows: int, batch: int, length: int, masked: bool) -> dict[str, Any]:
    """Lookups of both examples: texts of different lengths. Some weights are 0 and 1."""
    ids, partner_ids = (torch.from_numpy(rng.integers(0, rows, (batch, length))) for _ in range(2))
    lam = torch.from_numpy(rng.random(batch).astype(np.float32))
    lam[1::4], lam[2::4] = 1.0, 0.0
    found: dict[str, Any] = dict(ids=ids, partner_ids=partner_ids, lam=lam)
    if masked:
        for name in ("mask", "partner_mask"):
            ends = torch.from_numpy(rng.integers(0, length + 1, batch))
            found[name] = torch.arange(length)[None] < ends[:, None]
    return found


def mixed(
    weight: torch.Tensor, ids: Any, partner_ids: Any, lam: Any, mask: Any = None, partner_mask: Any = None
) -> Any:
    """The formula of the documentation, differentiable, in the dtype of `weight`."""
    own = lam.to(weight.dtype)[:, None] * (1 if mask is None else mask)
    other = (1 - lam.to(weight.dtype)[:, None]) * (1 if partner_mask is None else partner_mask)
    return own[..., None] * weight[ids] + other[..., None] * weight[partner_ids]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), **TOLERANCE[actual.dtype])


@EACH
@pytest.mark.parametrize("source", FLOATS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_mix_embeddings(
    backend: str, shape: tuple[int, ...], source: torch.dtype, masked: bool, rng: np.random.Generator
) -> None:
    rows, batch, length, columns = shape
    weight = torch.from_numpy(rng.standard_normal((2 * rows, columns + 3))).to(source)[::2, :columns]
    lookups = tokens(rng, rows, batch, length, masked)
    expected = mixed(weight.double(), **lookups)
    for target in dict.fromkeys((source, torch.float32, torch.bfloat16)):
        out = F.mix_embeddings(weight, **lookups, dtype=target, backend=backend)
        assert out.dtype == target and out.is_contiguous()
        rounded = expected if target == source == torch.float64 else expected.float()
        close(out, rounded)
        buffer = torch.empty(out.shape, dtype=target)
        before = buffer._version
        assert F.mix_embeddings(weight, **lookups, out=buffer, backend=backend) is buffer
        assert torch.equal(buffer, out) and buffer._version > before


@EACH
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, masked: bool, rng: np.random.Generator
) -> None:
    rows, batch, length, columns = shape
    weight = torch.from_numpy(rng.standard_normal((rows, columns))).to(dtype).requires_grad_()
    exact = weight.detach().double().requires_grad_()
    lookups = tokens(rng, rows, batch, length, masked)
    upstream = torch.from_numpy(rng.standard_normal((batch, length, columns))).to(dtype)
    padding = int(lookups["ids"][0, 0]) if lookups["ids"].numel() else 0
    forms: list[tuple[int | None, Any]] = [(None, {}), (padding, {}), (padding - rows, dict(sparse=True))]
    for padding_idx, form in [*forms, (None, dict(sparse=True)), (padding, dict(grad_buffer=F.GradientBuffer()))]:
        weight.grad = exact.grad = None
        F.mix_embeddings(weight, **lookups, padding_idx=padding_idx, backend=backend, **form).backward(upstream)
        mixed(exact, **lookups).backward(upstream.double())
        assert weight.grad is not None and exact.grad is not None
        if padding_idx is not None:
            exact.grad[padding] = 0
        assert weight.grad.is_sparse == ("sparse" in form)
        if weight.grad.is_sparse:
            row = weight.grad._indices()[0]
            assert bool((row[1:] > row[:-1]).all())
        # Up to all tokens are added in one row, in float32.
        limits = {**TOLERANCE[dtype], "atol": 1e-4}
        torch.testing.assert_close(weight.grad.to_dense(), exact.grad.to(dtype), **limits)


def test_gradcheck(backend: str, rng: np.random.Generator) -> None:
    weight = torch.from_numpy(rng.standard_normal((4, 2))).requires_grad_()
    lookups = tokens(rng, 4, 3, 2, True)

    def mix(weight: torch.Tensor) -> torch.Tensor:
        return F.mix_embeddings(weight, **lookups, backend=backend)

    assert torch.autograd.gradcheck(mix, (weight,))
    assert torch.autograd.gradgradcheck(lambda w: mix(w).pow(2), (weight,))


def test_weight_of_zero_reads_nothing(backend: str) -> None:
    weight = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]], requires_grad=True)
    ids, partner = torch.tensor([[0, 1]]), torch.tensor([[1, 1]])
    mask = torch.tensor([[True, False]])
    out = F.mix_embeddings(weight, ids, partner, torch.ones(1), mask, backend=backend)
    assert out.tolist() == [[[1.0, 2.0], [0.0, 0.0]]]
    out.backward(torch.tensor([[[3.0, 4.0], [torch.nan, torch.nan]]]))
    assert weight.grad is not None and weight.grad.tolist() == [[3.0, 4.0], [0.0, 0.0]]


def test_lam_of_one_gives_the_embeddings_exactly(backend: str, rng: np.random.Generator) -> None:
    weight = torch.from_numpy(rng.standard_normal((50, 33))).float()
    ids, partner = torch.from_numpy(rng.integers(0, 50, (2, 4, 9)))
    out = F.mix_embeddings(weight, ids, partner, torch.ones(4), backend=backend)
    assert torch.equal(out, torch.nn.functional.embedding(ids, weight))


def test_frozen_table_saves_no_tensors(backend: str, rng: np.random.Generator) -> None:
    weight = torch.from_numpy(rng.standard_normal((5, 4))).float()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: pytest.fail("saved"), lambda t: t):
        out = F.mix_embeddings(weight, **tokens(rng, 5, 2, 3, True), backend=backend)
    assert not out.requires_grad


def test_table_is_not_saved_for_the_backward_pass(rng: np.random.Generator) -> None:
    weight, kept = torch.nn.Parameter(torch.randn(5, 4)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        F.mix_embeddings(weight, **tokens(rng, 5, 2, 3, True))
    assert kept and weight.shape not in kept


def test_threads_do_not_change_the_gradient(rng: np.random.Generator) -> None:
    upstream = torch.from_numpy(rng.standard_normal((8, 40, 513))).float()
    lookups = tokens(rng, 1000, 8, 40, True)
    lookups["ids"][:, ::3] = 7  # a row that many tokens share
    weight = torch.zeros(1000, 513, requires_grad=True)
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            out = F.mix_embeddings(weight, **lookups, backend="cpu")
            found.append(torch.autograd.grad(out, weight, upstream)[0])
    finally:
        torch.set_num_threads(2)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_gradient_buffer_is_reused_if_nothing_refers_to_it(rng: np.random.Generator) -> None:
    weight = torch.nn.Parameter(torch.zeros(300, 2048))
    buffer = F.GradientBuffer()
    lookups = tokens(rng, 300, 2, 3, False)

    def step() -> torch.Tensor:
        F.mix_embeddings(weight, **lookups, grad_buffer=buffer).sum().backward()
        assert weight.grad is not None
        return weight.grad

    expected, first = step().clone(), weight.grad.data_ptr()  # type: ignore[union-attr]
    weight.grad = None
    torch.testing.assert_close(step(), expected)
    assert weight.grad.data_ptr() == first  # type: ignore[union-attr]
    torch.testing.assert_close(step(), 2 * expected)  # accumulates
    held, weight.grad = weight.grad, None
    step()
    torch.testing.assert_close(held, 2 * expected)
    weight.grad = None
    both = [F.mix_embeddings(weight, **lookups, grad_buffer=buffer) for _ in range(2)]
    (both[0] + both[1]).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * expected)
    assert copy.deepcopy(buffer).take(1, 2, torch.bfloat16).shape == (1, 2)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_whole(compiler: str, rng: np.random.Generator) -> None:
    lookups = tokens(rng, 30, 4, 6, True)
    weight, position_weight, scale, shift = (torch.randn(*s, requires_grad=True) for s in ((30, 8), (6, 8), (8,), (8,)))
    buffer = F.GradientBuffer()

    def both(lam: torch.Tensor) -> torch.Tensor:
        given = {**lookups, "lam": lam}
        words = F.mix_embeddings(weight, **given, padding_idx=3, grad_buffer=buffer)
        return words + F.mix_bert_embeddings(weight, position_weight, None, scale, shift, **given, eps=1e-3)

    compiled = torch.compile(both, fullgraph=True, backend=compiler)
    for lam in (lookups["lam"], lookups["lam"].flip(0)):
        results = []
        for run in (both, compiled):
            out = run(lam)
            results.append((out, *torch.autograd.grad(out.pow(2).sum(), (weight, position_weight, scale, shift))))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    with pytest.raises(Exception, match="cannot be traced by"):
        torch.compile(lambda: F.mix_embeddings(weight, **lookups, sparse=True), fullgraph=True, backend=compiler)()


def test_transforms_and_forward_mode(rng: np.random.Generator) -> None:
    weight, lookups = torch.from_numpy(rng.standard_normal((6, 3))), tokens(rng, 6, 2, 4, True)

    def total(weight: torch.Tensor) -> torch.Tensor:
        return F.mix_embeddings(weight, **lookups, sparse=True).pow(2).sum()

    expected = torch.autograd.grad(mixed(w := weight.clone().requires_grad_(), **lookups).pow(2).sum(), w)[0]
    torch.testing.assert_close(torch.func.grad(total)(weight), expected)
    direction = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.jvp(total, (weight,), (direction,))[1], (expected * direction).sum())


def test_optimizers_accept_every_form(rng: np.random.Generator) -> None:
    lookups = tokens(rng, 40, 3, 5, True)
    found = []
    for form in ({}, dict(grad_buffer=F.GradientBuffer()), dict(sparse=True)):
        weight = torch.nn.Parameter(torch.ones(40, 6))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            F.mix_embeddings(weight, **lookups, padding_idx=1, **form).pow(2).sum().backward()
            optimizer.step()
        found.append(weight.detach())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


WEIGHT, IDS, LAM, MASK = torch.zeros(4, 3), torch.zeros(2, 5, dtype=torch.int64), torch.ones(2), torch.ones(2, 5).bool()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda b: F.mix_embeddings(WEIGHT.int(), IDS, IDS, LAM, backend=b), TypeError, "weight must have dtype"),
        (lambda b: F.mix_embeddings(WEIGHT[0], IDS, IDS, LAM, backend=b), ValueError, "weight must have shape [V, D]"),
        (lambda b: F.mix_embeddings(torch.zeros(3, 4).T, IDS, IDS, LAM, backend=b), ValueError, "weight must have contiguous rows"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS.int(), IDS, LAM, backend=b), TypeError, "ids must have dtype int64"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS[0], IDS, LAM, backend=b), ValueError, "ids must have shape [B, S]"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS[:1], LAM, backend=b), ValueError, "partner_ids must have shape [2, 5]"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM[:1], backend=b), ValueError, "lam must have shape [2]"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM.double(), backend=b), TypeError, "lam must have dtype float32"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM.clone().requires_grad_(), backend=b), ValueError, "lam must not require grad"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM, MASK[:, :4], backend=b), ValueError, "mask must have shape [2, 5]"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM, MASK, MASK.long(), backend=b), TypeError, "partner_mask must have dtype bool"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM, padding_idx=4, backend=b), ValueError, "padding_idx must be in [-4, 4)"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM, padding_idx=True, backend=b), TypeError, "padding_idx must be an integer"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM, dtype=torch.int8, backend=b), TypeError, "dtype must be"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM, out=torch.empty(2, 5, 4), backend=b), ValueError, "out must have shape"),
        (lambda b: F.mix_embeddings(WEIGHT.clone().requires_grad_(), IDS, IDS, LAM, out=torch.empty(2, 5, 3), backend=b), ValueError, "weight must not require grad"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM, grad_buffer=1, backend=b), TypeError, "grad_buffer must be a GradientBuffer"),
        (lambda b: F.mix_embeddings(WEIGHT, IDS, IDS, LAM, sparse=True, grad_buffer=F.GradientBuffer(), backend=b), ValueError, "must be None with sparse"),
    ],
)  # fmt: skip
def test_bad_input(backend: str, call: Any, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        call(backend)
    assert text in str(caught.value)


@pytest.mark.parametrize("bad", [4, -1, 2**62])
def test_ids_out_of_range_are_not_read(backend: str, bad: int) -> None:
    ids = IDS.clone()
    ids[1, 3] = bad
    where = "out of range" if backend in ("cuda", "triton") else rf"ids\[1, 3\] = {bad} is out of range \[0, 4\)"
    for mask in (None, ~MASK):
        for pair in ((ids, IDS), (IDS, ids)):
            with pytest.raises(IndexError, match=where):
                out = F.mix_embeddings(WEIGHT, *pair, LAM / 2, mask, mask, backend=backend)
                assert backend == "cuda" and out.isnan().all(dim=2).nonzero().tolist() == [[1, 3]]
                raise_flagged()
