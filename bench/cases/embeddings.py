"""Mixed token embeddings, forward and backward: alone, in BERT's embedding block, and in a whole step of an optimizer.

Unmixed lookups stand beside them as what plain fine-tuning costs. All run in one process, under one allocator.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as nn
from torch import Tensor

from bench.context import Context
from bench.registry import Case, Contender, case
from spurmix import functional

VOCABULARY, COLUMNS, BATCH, LENGTH, POSITIONS = 30_522, 768, 32, 256, 512
UNMIXED = "one lookup and no mixing: what plain fine-tuning does"


class Work:
    """Tables of BERT's size, tokens of two examples, and an upstream gradient."""

    def __init__(self, zipf: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)

        def table(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).requires_grad_()

        self.weight = table(VOCABULARY, COLUMNS)
        self.others = [table(POSITIONS, COLUMNS), table(2, COLUMNS), table(COLUMNS), table(COLUMNS)]
        share = 1.0 / torch.arange(1, VOCABULARY + 1) if zipf else torch.ones(VOCABULARY)
        drawn = torch.multinomial(share, 2 * BATCH * LENGTH, replacement=True, generator=generator)
        self.ids, self.partner_ids = drawn.view(2, BATCH, LENGTH)
        self.lam = torch.rand(BATCH, generator=generator)
        self.upstream = torch.randn(BATCH, LENGTH, COLUMNS, generator=generator)
        self.types, self.positions = torch.zeros_like(self.ids), torch.arange(LENGTH)

    def ours(self, **form: Any) -> Tensor:
        return functional.mix_embeddings(self.weight, self.ids, self.partner_ids, self.lam, **form)

    def eager(self) -> Tensor:
        weight = self.lam[:, None, None]
        own, other = (nn.embedding(k, self.weight) for k in (self.ids, self.partner_ids))
        return weight * own + (1 - weight) * other

    def unmixed(self) -> Tensor:
        return nn.embedding(self.ids, self.weight)

    def our_block(self, **form: Any) -> Tensor:
        return functional.mix_bert_embeddings(
            self.weight, *self.others, self.ids, self.partner_ids, self.lam, token_type_ids=self.types, **form
        )

    def block(self, words: Tensor) -> Tensor:
        """The rest of the embedding block, as Hugging Face's BERT computes it."""
        position_weight, type_weight, scale, shift = self.others
        x = words + nn.embedding(self.types, type_weight)
        x = x + nn.embedding(self.positions[None], position_weight)
        return nn.layer_norm(x, (COLUMNS,), scale, shift, 1e-12)

    def gradient(self, output: Callable[[], Tensor], optimizer: torch.optim.Optimizer | None = None) -> Tensor:
        """Gradients of the tables from none, and a step with them; returns that of the words."""
        for parameter in (self.weight, *self.others):
            parameter.grad = None
        output().backward(self.upstream)  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()
        assert self.weight.grad is not None
        return self.weight.grad

    def contender(
        self,
        name: str,
        output: Callable[[], Tensor],
        kind: str = "ours",
        note: str = "",
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Contender:
        """Compared by the words' gradient before any step, unless unmixed; timed without making it dense."""

        def run() -> Tensor | None:
            return None if note == UNMIXED else self.gradient(output).to_dense()

        def seconds() -> float:
            began = time.perf_counter()
            self.gradient(output, optimizer)
            return time.perf_counter() - began

        return Contender(name, run, kind, note, seconds)


def _forms(work: Work, output: Callable[..., Tensor]) -> list[Contender]:
    buffer = functional.GradientBuffer()
    return [
        work.contender("spurmix", output),
        work.contender("spurmix, gradient buffer", lambda: output(grad_buffer=buffer)),
        work.contender("spurmix, gradient by rows", lambda: output(sparse=True)),
    ]


def _mixing(zipf: bool) -> Case:
    work = Work(zipf)
    contenders = [
        *_forms(work, work.ours),
        work.contender("eager", work.eager, "peer"),
        work.contender("F.embedding, unmixed", work.unmixed, "peer", UNMIXED),
    ]
    # A frequent row's gradient is a sum of a thousand numbers, in another order.
    return Case(contenders, items=BATCH * LENGTH, tolerance=1e-3 if zipf else 1e-4)


@case("embeddings")
def embeddings(context: Context) -> Case:
    """Mix embeddings of 32 texts of 256 tokens, 30,522 x 768, forward and backward."""
    return _mixing(zipf=False)


@case("embeddings_zipf", quick=False)
def embeddings_zipf(context: Context) -> Case:
    """The same with ids as frequent as words are: a few rows share many tokens."""
    return _mixing(zipf=True)


@case("embeddings_bert")
def embeddings_bert(context: Context) -> Case:
    """BERT's embedding block on mixed tokens, forward and backward, 32 texts of 256 tokens."""
    work = Work()
    contenders = [
        *_forms(work, work.our_block),
        work.contender("eager block", lambda: work.block(work.eager()), "peer"),
        work.contender("eager block, unmixed", lambda: work.block(work.unmixed()), "peer", UNMIXED),
    ]
    return Case(contenders, items=BATCH * LENGTH, tolerance=1e-3)


@case("embeddings_step")
def embeddings_step(context: Context) -> Case:
    """A whole step on the table: gradients dropped, forward, backward, optimizer; each form of gradient."""
    work, buffer = Work(), functional.GradientBuffer()
    adam = torch.optim.AdamW([work.weight], lr=1e-9, fused=True)
    sparse_adam, sgd = torch.optim.SparseAdam([work.weight], lr=1e-9), torch.optim.SGD([work.weight], lr=1e-9)
    contenders = [
        work.contender("spurmix, AdamW", work.ours, optimizer=adam),
        work.contender("spurmix, gradient buffer, AdamW", lambda: work.ours(grad_buffer=buffer), optimizer=adam),
        work.contender("spurmix, rows, SparseAdam", lambda: work.ours(sparse=True), optimizer=sparse_adam),
        work.contender("spurmix, rows, SGD", lambda: work.ours(sparse=True), optimizer=sgd),
        work.contender("eager, AdamW", work.eager, "peer", optimizer=adam),
        work.contender("F.embedding, unmixed, AdamW", work.unmixed, "peer", UNMIXED, adam),
    ]
    return Case(contenders, items=BATCH * LENGTH, tolerance=1e-4)
