"""Mixed token embeddings, forward and backward: alone, in BERT's embedding block, and in an optimizer step.

Unmixed lookups show the cost of plain fine-tuning. All contenders share a process and an allocator, because page faults
dominate these times.
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
UNMIXED = "one lookup and no mixing, as in plain fine-tuning"


class Work:
    """Tables of the size of BERT-base, tokens of two examples per sample, and a gradient of the output.

    Args:
        zipf: Whether token frequencies follow Zipf's law. Default: all tokens are equally frequent.
    """

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
        """Mix embeddings by the operator. `form` selects the form of the gradient."""
        return functional.mix_embeddings(self.weight, self.ids, self.partner_ids, self.lam, **form)

    def eager(self) -> Tensor:
        """Mix embeddings in plain PyTorch."""
        weight = self.lam[:, None, None]
        first, second = (nn.embedding(k, self.weight) for k in (self.ids, self.partner_ids))
        return weight * first + (1 - weight) * second

    def unmixed(self) -> Tensor:
        """Look up the embeddings of the first example only."""
        return nn.embedding(self.ids, self.weight)

    def our_block(self, **form: Any) -> Tensor:
        """Compute BERT's embedding block on mixed tokens by the operator."""
        return functional.mix_bert_embeddings(
            self.weight, *self.others, self.ids, self.partner_ids, self.lam, token_type_ids=self.types, **form
        )

    def block(self, words: Tensor) -> Tensor:
        """Compute the rest of BERT's embedding block as Hugging Face transformers does."""
        position_weight, type_weight, scale, shift = self.others
        x = words + nn.embedding(self.types, type_weight)
        x = x + nn.embedding(self.positions[None], position_weight)
        return nn.layer_norm(x, (COLUMNS,), scale, shift, 1e-12)

    def gradient(self, output: Callable[[], Tensor], optimizer: torch.optim.Optimizer | None = None) -> Tensor:
        """Drop the gradients, run forward and backward, and make an optimizer step. Returns the word table's gradient."""
        for parameter in (self.weight, *self.others):
            parameter.grad = None
        output().backward(self.upstream)
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
        """Return a contender, compared by the gradient of the word table. Its time excludes making a gradient dense."""

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
        work.contender("spurmix, sparse gradient", lambda: output(sparse=True)),
    ]


def _mixing(zipf: bool) -> Case:
    work = Work(zipf)
    contenders = [
        *_forms(work, work.ours),
        work.contender("eager", work.eager, "peer"),
        work.contender("F.embedding, unmixed", work.unmixed, "peer", UNMIXED),
    ]
    # The gradient of a frequent token is a sum of about a thousand numbers, in a different order.
    return Case(contenders, items=BATCH * LENGTH, tolerance=1e-3 if zipf else 1e-4)


@case("embeddings")
def embeddings(context: Context) -> Case:
    """Mix embeddings of 32 texts of 256 tokens, table of 30,522 x 768, forward and backward."""
    return _mixing(zipf=False)


@case("embeddings_zipf", quick=False)
def embeddings_zipf(context: Context) -> Case:
    """The same with the token frequencies of Zipf's law, where many tokens share a few rows."""
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
    """Forward, backward and optimizer step on the table, for each form of the gradient."""
    work, buffer = Work(), functional.GradientBuffer()
    adam = torch.optim.AdamW([work.weight], lr=1e-9, fused=True)
    sparse_adam, sgd = torch.optim.SparseAdam([work.weight], lr=1e-9), torch.optim.SGD([work.weight], lr=1e-9)
    contenders = [
        work.contender("spurmix, AdamW", work.ours, optimizer=adam),
        work.contender("spurmix, gradient buffer, AdamW", lambda: work.ours(grad_buffer=buffer), optimizer=adam),
        work.contender("spurmix, sparse gradient, SparseAdam", lambda: work.ours(sparse=True), optimizer=sparse_adam),
        work.contender("spurmix, sparse gradient, SGD", lambda: work.ours(sparse=True), optimizer=sgd),
        work.contender("eager, AdamW", work.eager, "peer", optimizer=adam),
        work.contender("F.embedding, unmixed, AdamW", work.unmixed, "peer", UNMIXED, adam),
    ]
    return Case(contenders, items=BATCH * LENGTH, tolerance=1e-4)
