"""Cross entropy of mixed samples, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nn
from torch import Tensor

from bench.context import Context
from bench.registry import Case, Contender, case
from spurmix import functional


def _case(batch: int, classes: int, repeats: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, generator=generator).requires_grad_()
    label, partner = torch.randint(0, classes, (2, batch), generator=generator)
    lam = torch.rand(batch, generator=generator)
    weight = lam[:, None]

    def one_hot() -> Tensor:
        return weight * nn.one_hot(label, classes) + (1 - weight) * nn.one_hot(partner, classes)

    def scattered() -> Tensor:
        target = torch.zeros(batch, classes).scatter_add_(1, label[:, None], weight)
        return target.scatter_add_(1, partner[:, None], 1 - weight)

    def two(logits: Tensor) -> Tensor:
        first, second = (nn.cross_entropy(logits, y, reduction="none") for y in (label, partner))
        return (lam * first + (1 - lam) * second).mean()

    def gathered(logits: Tensor) -> Tensor:
        log_p = nn.log_softmax(logits, 1)
        first, second = (log_p.gather(1, y[:, None])[:, 0] for y in (label, partner))
        return -(lam * first + (1 - lam) * second).mean()

    prebuilt = one_hot()
    dense_compiled = torch.compile(lambda x: nn.cross_entropy(x, one_hot()), dynamic=False)
    two_compiled = torch.compile(two, dynamic=False)
    forms: list[tuple[str, Callable[[], Tensor]]] = [
        ("spurmix", lambda: functional.mixed_cross_entropy(logits, label, partner, lam)),
        ("dense targets by one_hot", lambda: nn.cross_entropy(logits, one_hot())),
        ("dense targets by scatter", lambda: nn.cross_entropy(logits, scattered())),
        ("dense targets, built beforehand", lambda: nn.cross_entropy(logits, prebuilt)),
        ("two index losses", lambda: two(logits)),
        ("one log_softmax, two gathers", lambda: gathered(logits)),
        ("torch.compile, dense by one_hot", lambda: dense_compiled(logits)),
        ("torch.compile, two index losses", lambda: two_compiled(logits)),
    ]

    def stepping(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            logits.grad = None
            loss().backward()
            assert logits.grad is not None
            return logits.grad

        return step

    contenders = [Contender(name, stepping(loss), "peer" if k else "ours") for k, (name, loss) in enumerate(forms)]
    return Case(contenders, items=batch, tolerance=2e-5 / batch, repeats=repeats)


@case("loss_256_1000")
def loss_256_1000(context: Context) -> Case:
    """Forward and backward, 256 samples of 1000 classes."""
    return _case(256, 1000, 61)


@case("loss_8192_1000")
def loss_8192_1000(context: Context) -> Case:
    """Forward and backward, 8192 samples of 1000 classes."""
    return _case(8192, 1000, 15)


@case("loss_256_2")
def loss_256_2(context: Context) -> Case:
    """Forward and backward, 256 samples of 2 classes."""
    return _case(256, 2, 61)
