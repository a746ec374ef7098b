"""mixed_cross_entropy and group_counts, compared with dense computations in torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spurmix.ops import functional as F

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def batch(rng: np.random.Generator, b: int, c: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    logits = torch.from_numpy(rng.standard_normal((b, c)) * 5).to(dtype)
    label, partner_label = (torch.from_numpy(rng.integers(0, c, b)) for _ in range(2))
    lam = torch.from_numpy(rng.random(b).astype(np.float32))
    lam[::4] = 1.0
    return logits, label, partner_label, lam


def dense(
    logits: torch.Tensor, label: torch.Tensor, partner_label: torch.Tensor, lam: torch.Tensor, **options: Any
) -> torch.Tensor:
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(
        x, F.mix_labels(label, partner_label, lam, x.shape[1], dtype=x.dtype, backend="reference"), **options
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_loss_and_gradient(
    backend: str, dtype: torch.dtype, reduction: str, smoothing: float, rng: np.random.Generator
) -> None:
    for b, c in ((1, 1), (5, 2), (7, 1000), (3, 1025)):
        logits, *rest = batch(rng, b, c, dtype)
        options: Any = dict(reduction=reduction, label_smoothing=smoothing)
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        loss = F.mixed_cross_entropy(ours, *rest, **options, backend=backend)
        expected = dense(theirs, *rest, **options)
        assert loss.dtype == expected.dtype
        torch.testing.assert_close(loss, expected, rtol=3e-6, atol=3e-6)
        weight = torch.randn(expected.shape, dtype=expected.dtype)
        (loss * weight).sum().backward()
        (expected * weight).sum().backward()
        assert ours.grad is not None and ours.grad.dtype == dtype
        torch.testing.assert_close(ours.grad, theirs.grad)


@given(st.integers(1, 6), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_gradients_of_a_sample_sum_to_zero_and_loss_is_at_least_its_entropy(
    b: int, c: int, smoothing: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits, label, partner_label, lam = batch(rng, b, c, torch.float64)
    logits.requires_grad_()
    loss = F.mixed_cross_entropy(logits, label, partner_label, lam, reduction="none", label_smoothing=smoothing)
    loss.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.sum(dim=1), torch.zeros(b, dtype=torch.float64), atol=1e-12, rtol=0)
    target = F.mix_labels(label, partner_label, lam, c, dtype=torch.float64)
    target = (1 - smoothing) * target + smoothing / c
    assert torch.all(loss >= torch.special.entr(target).sum(dim=1) - 1e-9)


def test_gradcheck(backend: str, rng: np.random.Generator) -> None:
    logits, *rest = batch(rng, 4, 5, torch.float64)
    logits.requires_grad_()
    for reduction in ("mean", "sum", "none"):

        def function(x: torch.Tensor, reduction: str = reduction) -> torch.Tensor:
            return F.mixed_cross_entropy(x, *rest, reduction=reduction, label_smoothing=0.1, backend=backend)

        assert torch.autograd.gradcheck(function, (logits,))
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    index, partner, lam = torch.tensor([0, 1, 1]), torch.tensor([4, 1, 0]), torch.tensor([0.25, 0.5, 1.0])
    assert torch.autograd.gradcheck(lambda r: F.mix_rows(r, index, partner, lam, backend=backend), (rows,))


def test_gradient_of_lam_in_rows(backend: str) -> None:
    rows = torch.randn(5, 3)
    index, partner = torch.tensor([0, 1]), torch.tensor([4, 2])
    lam = torch.tensor([0.25, 0.5], requires_grad=True)
    F.mix_rows(rows, index, partner, lam, backend=backend).sum().backward()
    torch.testing.assert_close(lam.grad, (rows[index] - rows[partner]).sum(dim=1))


def test_labels_alone(backend: str, rng: np.random.Generator) -> None:
    logits, label, *_ = batch(rng, 6, 4, torch.float32)
    expected = torch.nn.functional.cross_entropy(logits, label)
    torch.testing.assert_close(F.mixed_cross_entropy(logits, label, backend=backend), expected)


def test_extreme_logits(backend: str) -> None:
    inf = math.inf
    logits = torch.tensor([[1e30, 0.0, -1e30], [-inf, 0.0, 1.0], [700.0, 690.0, -inf], [-200.0, -200.0, -200.0]])
    label, partner_label = torch.tensor([0, 1, 0, 2]), torch.tensor([0, 2, 1, 1])
    lam = torch.tensor([1.0, 0.5, 0.75, 0.5])
    loss = F.mixed_cross_entropy(logits, label, partner_label, lam, reduction="none", backend=backend)
    expected = torch.stack(
        [
            -(w * torch.log_softmax(row, 0)[y] + (1 - w) * torch.log_softmax(row, 0)[z])
            for row, y, z, w in zip(logits, label, partner_label, lam, strict=True)
        ]
    )
    torch.testing.assert_close(loss, expected)
    assert math.isnan(float(F.mixed_cross_entropy(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]), backend=backend)))


def test_empty_batch_and_views(backend: str, rng: np.random.Generator) -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert math.isnan(float(F.mixed_cross_entropy(torch.empty(0, 3), none, backend=backend)))
    assert float(F.mixed_cross_entropy(torch.empty(0, 3), none, reduction="sum", backend=backend)) == 0
    logits, *rest = batch(rng, 8, 6, torch.float32)
    views = [torch.cat([logits, logits], dim=1)[:, :6], logits.T.contiguous().T]
    expected = F.mixed_cross_entropy(logits, *rest, backend=backend)
    for view in views:
        x = view.detach().requires_grad_()
        loss = F.mixed_cross_entropy(x, *rest, backend=backend)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert x.grad is not None and bool(torch.isfinite(x.grad).all())


def test_group_counts(backend: str, rng: np.random.Generator) -> None:
    for b, c, groups in ((1, 1, 1), (50, 3, 4), (200, 700, 6)):
        logits = torch.from_numpy(rng.standard_normal((b, c)).astype(np.float32))
        label, group = torch.from_numpy(rng.integers(0, c, b)), torch.from_numpy(rng.integers(-1, groups, b))
        correct = (logits.argmax(1) == label).numpy()
        expected = [[int(correct[group.numpy() == g].sum()), int((group == g).sum())] for g in range(groups)]
        counts = F.group_counts(logits, label, group, groups, backend=backend)
        assert counts.tolist() == expected
        F.group_counts(logits, label, group, out=counts, backend=backend)
        assert counts.tolist() == (2 * np.array(expected)).tolist()
        membership = torch.from_numpy(rng.random((b, groups)) < 0.5)
        expected = [[int(correct[m].sum()), int(m.sum())] for m in membership.numpy().T]
        assert F.group_counts(logits, label, membership, backend=backend).tolist() == expected
        assert F.group_counts(logits.to(torch.bfloat16), label, group, groups, backend=backend).sum() > 0 or b == 1


def test_group_counts_of_ties_and_nan(backend: str) -> None:
    logits = torch.tensor([[1.0, 1.0], [0.0, math.nan], [-math.inf, -math.inf]])
    counts = F.group_counts(logits, torch.tensor([0, 1, 0]), torch.tensor([0, 1, 2]), 3, backend=backend)
    assert counts.tolist() == [[1, 1], [1, 1], [1, 1]]


X, Y, LAM = torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda b: F.mixed_cross_entropy(X, Y + 2, backend=b), IndexError, "label[1] = 3 is out of range [0, 3)"),
        (lambda b: F.mixed_cross_entropy(X, Y - 1, backend=b), IndexError, "label[0] = -1 is out of range [0, 3)"),
        (lambda b: F.mixed_cross_entropy(X, Y, Y + 2, LAM, backend=b), IndexError, "partner_label[1] = 3"),
        (lambda b: F.mixed_cross_entropy(X, Y[:1], backend=b), ValueError, "label must have shape [2]"),
        (lambda b: F.mixed_cross_entropy(X, Y.float(), backend=b), TypeError, "label must have dtype int64"),
        (lambda b: F.mixed_cross_entropy(X, Y, Y, backend=b), ValueError, "must be given together"),
        (lambda b: F.mixed_cross_entropy(X, Y, reduction="avg", backend=b), ValueError, "reduction"),
        (lambda b: F.mixed_cross_entropy(X, Y, label_smoothing=1.5, backend=b), ValueError, "label_smoothing"),
        (lambda b: F.mixed_cross_entropy(X.long(), Y, backend=b), TypeError, "logits must have dtype"),
        (lambda b: F.mixed_cross_entropy(X[:, :0], Y, backend=b), ValueError, "at least one class"),
        (lambda b: F.mixed_cross_entropy(X, Y, Y, LAM.clone().requires_grad_(), backend=b), ValueError, "lam must not require grad"),
        (lambda b: F.group_counts(X, Y, Y + 1, 2, backend=b), IndexError, "out of range"),
        (lambda b: F.group_counts(X, Y, Y, backend=b), ValueError, "num_groups"),
        (lambda b: F.group_counts(X, Y, Y, out=torch.zeros(2, 2), backend=b), TypeError, "out must have dtype int64"),
        (lambda b: F.group_counts(X, Y, torch.zeros(3, 2, dtype=torch.bool), backend=b), ValueError, "group must have"),
    ],
)  # fmt: skip
def test_bad_input(backend: str, call: Any, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        call(backend)
    assert text in str(caught.value)


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 9, 40])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("special", [None, math.nan, math.inf, -math.inf])
def test_gradient_of_the_forward_pass_is_that_of_the_backward_op(
    classes: int, reduction: str, special: float | None
) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = 5 * torch.randn(37, classes, generator=generator)
    label, partner = torch.randint(0, classes, (2, 37), generator=generator)
    lam = torch.rand(37, generator=generator)
    if special is not None:
        logits[20, classes // 2] = special
    results = []
    for backend in ("cpu", "reference"):
        x = logits.clone().requires_grad_()
        loss = F.mixed_cross_entropy(
            x,
            label,
            partner,
            lam,
            reduction=reduction,
            label_smoothing=0.1 if special is None else 0.0,
            backend=backend,
        )
        upstream = torch.linspace(0.5, 2, 37) if reduction == "none" else torch.tensor(3.0)
        (grad,) = torch.autograd.grad(loss, x, upstream)
        results.append((loss.detach(), grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_backward_twice() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    y, lam = torch.tensor([0, 1, 2, 0]), torch.rand(4)
    loss = F.mixed_cross_entropy(x, y, y.flip(0), lam)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    each = torch.autograd.grad(loss, x, torch.arange(3.0), is_grads_batched=True)[0]
    torch.testing.assert_close(each, torch.arange(3.0)[:, None, None] * first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradient_penalty(dtype: torch.dtype, reduction: str, rng: np.random.Generator) -> None:
    logits, *rest = batch(rng, 6, 4, dtype)
    found = []
    for backend in ("reference", "cpu", "triton"):
        x = (logits / 5).requires_grad_()
        loss = F.mixed_cross_entropy(x, *rest, reduction=reduction, backend=backend).sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + 100 * grad.pow(2).sum()).backward()
        found.append(x.grad)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_error_names_labels_on_another_device() -> None:
    x, y, lam = torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1]), torch.rand(2)
    for inputs in ((y.to("meta"), y, lam), (y, y.to("meta"), lam), (y, y, lam.to("meta"))):
        with pytest.raises(ValueError, match="meta"):
            F.mixed_cross_entropy(x, *inputs)


def test_smoothing_is_precise_with_large_logits(backend: str, rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.integers(-4, 5, (20, 40)).astype(np.float32))
    for classes in (5, 40):
        x, y = logits[:, :classes].contiguous(), torch.zeros(20, dtype=torch.int64)
        for leaf in (False, True):
            plain, far = (v.clone().requires_grad_(leaf) for v in (x, x + 2**17))
            losses = [F.mixed_cross_entropy(v, y, label_smoothing=0.3, backend=backend) for v in (plain, far)]
            torch.testing.assert_close(losses[0], losses[1], rtol=2e-6, atol=2e-6)


def test_transforms_and_forward_mode(rng: np.random.Generator) -> None:
    """torch.func and forward-mode AD use the reference, because kernels do not support them."""
    logits, *rest = batch(rng, 5, 4, torch.float64)
    tangent = torch.from_numpy(rng.standard_normal((5, 4)))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return F.mixed_cross_entropy(x, *rest)

    x = logits.clone().requires_grad_()
    loss(x).backward()
    assert x.grad is not None
    torch.testing.assert_close(torch.func.grad(loss)(logits), x.grad)
    torch.testing.assert_close(torch.func.jvp(loss, (logits,), (tangent,))[1], (x.grad * tangent).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = loss(torch.autograd.forward_ad.make_dual(logits, tangent))
        slope = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(slope, (x.grad * tangent).sum())
    assert torch.func.hessian(loss)(logits).shape == (5, 4, 5, 4)
    stacked = torch.stack([logits, logits + 1])
    torch.testing.assert_close(torch.vmap(loss)(stacked), torch.stack([loss(s) for s in stacked]))
    # A kernel would silently drop the tangents of lam, and of logits that also require grad.
    index, lam = (torch.tensor([0, 3]), torch.tensor([2, 2])), torch.tensor([0.25, 0.5])
    slope_of_lam = torch.func.jvp(lambda w: F.mix_rows(logits, *index, w), (lam,), (torch.ones(2),))[1]
    torch.testing.assert_close(slope_of_lam, logits[index[0]] - logits[index[1]])
    with torch.autograd.forward_ad.dual_level():
        rows = F.mix_rows(logits, *index, torch.autograd.forward_ad.make_dual(lam, torch.ones(2)))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(rows).tangent, slope_of_lam)
        dual = loss(torch.autograd.forward_ad.make_dual(logits.clone().requires_grad_(), tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope)
    rows = torch.func.grad(lambda r: F.mix_rows(r, rest[0][:2], rest[1][:2], rest[2][:2]).sum())(logits)
    assert float(rows.sum()) == pytest.approx(8.0)
