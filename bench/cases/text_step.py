"""A training step of BERT-base on mixed texts, compared with the same step on unmixed texts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.context import Context
from bench.registry import Case, Contender, case
from spurmix import MixedInputs, TokenPairs, functional, models

BATCH, LENGTH, VOCABULARY = 8, 64, 30522


def _pairs(generator: torch.Generator) -> TokenPairs:
    """Return pairs of texts of `LENGTH` / 2 to `LENGTH` tokens."""
    ids = torch.randint(1000, VOCABULARY, (2, BATCH, LENGTH), generator=generator)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (2, BATCH, 1), generator=generator)
    lengths[0] = LENGTH
    masks = torch.arange(LENGTH) < lengths
    lam = 0.1 + 0.8 * torch.rand(BATCH, generator=generator)
    return TokenPairs(*(ids * masks), *masks, lam)


@case("bert_base_step", quick=False)
def bert_base_step(context: Context) -> Case:
    """Forward, backward and AdamW step of BERT-base, 8 texts of 64 tokens, float32, without dropout."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = models.bert(2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    mixed = MixedInputs(model)
    pairs = _pairs(generator)
    label, partner = torch.randint(0, 2, (2, BATCH), generator=generator)
    # With a learning rate of 0 all contenders run the full step on the same weights.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    table = model.get_input_embeddings()
    union = pairs.union_mask.long()

    def eager() -> Tensor:
        lam = pairs.lam[:, None, None]
        first, second = table(pairs.ids), table(pairs.partner_ids)
        embeds = lam * first * pairs.mask[..., None] + (1 - lam) * second * pairs.partner_mask[..., None]
        return model(inputs_embeds=embeds, attention_mask=union).logits

    def unmixed() -> Tensor:
        return model(input_ids=pairs.ids, attention_mask=union).logits

    def stepping(forward: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            optimizer.zero_grad()
            logits = forward()
            loss(logits).backward()
            optimizer.step()
            return logits.detach()

        return step

    def both(logits: Tensor) -> Tensor:
        return functional.mixed_cross_entropy(logits, label, partner, pairs.lam)

    def two(logits: Tensor) -> Tensor:
        first, second = (nn.functional.cross_entropy(logits, y, reduction="none") for y in (label, partner))
        return (pairs.lam * first + (1 - pairs.lam) * second).mean()

    plain = stepping(unmixed, lambda logits: nn.functional.cross_entropy(logits, label))

    def without_result() -> None:
        plain()

    contenders = [
        Contender("spurmix, MixedInputs", stepping(lambda: mixed(pairs).logits, both), "ours"),
        Contender("eager mixing, inputs_embeds", stepping(eager, two)),
        Contender("same model, unmixed", without_result, "baseline", "one lookup and no mixing"),
    ]
    return Case(contenders, items=BATCH, tolerance=1e-4, repeats=9)
