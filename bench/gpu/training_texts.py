"""Training steps of BERT-base on mixed word embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.gpu import data
from bench.gpu.models import Bert
from bench.gpu.record import device, dry
from bench.gpu.training_steps import Step, dense_loss, in_turns, sgd_update, worker_batches
from spurmix import MixLoader, TokenPairs, TokenSource
from spurmix.ops import functional as F

CASE = "bert_64_128"


class TextSteps:
    """Model, texts of equal length and training steps."""

    def __init__(self) -> None:
        self.batch, length, stored, words = (2, 8, 32, 90) if dry() else (64, 128, 20000, 30522)
        self.model = (Bert(1, 64, words, length) if dry() else Bert(words=words)).to(device())
        self.update = sgd_update(self.model)
        self.tokens = torch.randint(0, words, (stored, length), device=device())
        self.pictures = data.Pictures(stored, 1, self.batch)  # for their labels, groups and draws

    def synthetic(self) -> Step:
        """Step on one fixed batch of embeddings, without a gradient of the whole table."""
        labels, drawn, table = self.pictures.labels, self.pictures.drawn, self.model.words.weight
        embedded = table.detach()[self.tokens[: self.batch]].clone()
        label, partner_label = labels[drawn.index], labels[drawn.partner]

        def loss() -> Tensor:
            return F.mixed_cross_entropy(self.model(embedded + table[:1]), label, partner_label, drawn.lam)

        return lambda: self.update(loss)

    def loaded(self) -> Step:
        """Step on batches of a `MixLoader`, whose token pairs are packed on the host."""
        source = TokenSource.from_lists(list(self.tokens.cpu().numpy()))
        groups, policy = self.pictures.groups, self.pictures.policy
        batches = iter(MixLoader(source, groups, policy, self.batch, steps=10**6, device=device()))

        def step() -> None:
            b = next(batches)
            pairs = b.input
            assert isinstance(pairs, TokenPairs)

            def loss() -> Tensor:
                mixed = F.mix_embeddings(
                    self.model.words.weight, pairs.ids, pairs.partner_ids, pairs.lam, pairs.mask, pairs.partner_mask
                )
                return F.mixed_cross_entropy(self.model(mixed), b.label, b.partner_label, b.lam)

            self.update(loss)

        return step

    def drawn(self) -> Step:
        """Step on samples that are drawn and mixed on the device by operators."""
        labels, position = self.pictures.labels, [0]

        def step() -> None:
            index, partner, lam = F.draw(self.pictures.tables, seed=0, start=position[0], count=self.batch)
            position[0] += self.batch

            def loss() -> Tensor:
                mixed = F.mix_embeddings(self.model.words.weight, self.tokens[index], self.tokens[partner], lam)
                return F.mixed_cross_entropy(self.model(mixed), labels[index], labels[partner], lam)

            self.update(loss)

        return step

    def _eager_update(self, ids: Tensor, partner_ids: Tensor, label: Tensor, partner_label: Tensor) -> None:
        """Step on embeddings mixed by plain PyTorch, with dense targets."""
        lam = torch.rand(self.batch, device=device())

        def loss() -> Tensor:
            weight = lam[:, None, None]
            mixed = weight * self.model.words(ids) + (1 - weight) * self.model.words(partner_ids)
            return dense_loss(self.model(mixed), label, partner_label, lam)

        self.update(loss)

    def eager(self) -> Step:
        """Step on random pairs from the device, mixed by plain PyTorch."""
        tokens, labels = self.tokens, self.pictures.labels
        chances = torch.ones(self.pictures.stored, device=device())

        def step() -> None:
            index, partner = torch.multinomial(chances, 2 * self.batch, replacement=True).view(2, self.batch)
            self._eager_update(tokens[index], tokens[partner], labels[index], labels[partner])

        return step

    def from_workers(self) -> tuple[Step, int]:
        """Step on batches of a DataLoader, mixed by plain PyTorch, and the number of workers."""
        batches, workers = worker_batches(self.tokens.cpu(), self.pictures.groups.labels.tolist(), self.batch, most=4)

        def step() -> None:
            ids, label = next(batches)
            self._eager_update(ids, ids.roll(1, 0), label, label.roll(1))

        return step, workers


def bert() -> None:
    """Measure steps of BERT-base, batch 64 of 128 tokens."""
    builder = TextSteps()
    from_workers, workers = builder.from_workers()
    steps = {
        "synthetic, one resident batch": builder.synthetic(),
        "spurmix loader": builder.loaded(),
        "spurmix draw and mix_embeddings": builder.drawn(),
        "eager mixing, dense targets": builder.eager(),
        "DataLoader, eager mixing": from_workers,
    }
    notes = {
        "synthetic, one resident batch": "fixed embeddings; no gradient of the table",
        "spurmix loader": "token pairs packed on the host",
        "spurmix draw and mix_embeddings": "tokens on the GPU",
        "DataLoader, eager mixing": f"{workers} workers",
    }
    in_turns(CASE, steps, notes)
