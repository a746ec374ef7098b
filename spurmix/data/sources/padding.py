"""Checks by trial that a text model gives a text the same outputs with padding as without.

Models differ in the side on which they accept padding, and some accept none: XLNet reads the last position, absolute
positions require padding on the right, and convolutions read across the mask. A trial of a few short texts shows this for
every architecture, without a list of names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.data.batch import Tokens

SIDES = ("right", "left")
TRIAL_LENGTHS = (3, 5)
"""Number of tokens of each trial text."""
TRIAL_PADDING = 3
"""Number of padding positions behind the longest trial text."""
_SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask", "unk", "decoder_start")

Run = Callable[[Tokens], object]
"""Runs a model on texts and returns its output."""

_results: WeakKeyDictionary[nn.Module, dict[tuple[str, int], str | None]] = WeakKeyDictionary()


def positions(model: nn.Module) -> tuple[int | None, int | None]:
    """Find the position embeddings of a model.

    Models of the RoBERTa family start to count positions at padding_idx + 1, so the positions before are unused.

    Args:
        model: The model.

    Returns:
        Maximum number of tokens of a text, None if there is no limit; and padding_idx, None if positions start at 0.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] == "position_embeddings":
            before = module.padding_idx
            return module.num_embeddings - (0 if before is None else before + 1), before
    return None, None


def check_side(padding_side: object) -> str:
    """Return `padding_side`. Raise a ValueError if it is neither "right" nor "left"."""
    return checks.choice(padding_side, "padding_side", SIDES)


def to_left(mask: Tensor, *values: Tensor) -> None:
    """Move the padding of texts from the right to the left, in place.

    Args:
        mask: Attention mask, bool `[B, S]`, with padding on the right.
        *values: Tensors `[B, S]` that are moved with the mask.
    """
    width = mask.shape[1]
    shift = width - mask.sum(1, keepdim=True)
    source = (torch.arange(width, device=mask.device) - shift) % max(width, 1)
    for tensor in (*values, mask):
        tensor.copy_(tensor.gather(1, source))


def padding_problem(model: nn.Module, padding_side: str, pad_id: int) -> str | None:
    """Explain why a model gives padded texts other outputs than the texts alone, or return None.

    The result is stored, so the model runs once for each side and id. A model that cannot run on short texts is not
    checked.

    Args:
        model: A Hugging Face text model.
        padding_side: "right" or "left".
        pad_id: Id that pads shorter texts.

    Returns:
        The explanation, or None.
    """
    known = _results.setdefault(model, {})
    key = (padding_side, pad_id)
    if key not in known:
        known[key] = compare(model, padding_side, pad_id, lambda texts: _run(model, texts))
    return known[key]


def compare(
    model: nn.Module, padding_side: str, pad_id: int, run_padded: Run, run_alone: Run | None = None
) -> str | None:
    """Compare the outputs of padded texts with those of each text alone.

    Args:
        model: The model. It runs in evaluation mode. Its modes and the random generators are restored.
        padding_side: "right" or "left".
        pad_id: Id that pads shorter texts.
        run_padded: Runs the model on padded texts.
        run_alone: Runs the model on one text without padding. Default: with ids.

    Returns:
        A description of the difference, or None if there is none.
    """
    texts = _trial_texts(model, pad_id)
    if texts is None:
        return None
    run_alone = run_alone or (lambda text: _run(model, text))
    with _trial_mode(model):
        try:
            alone = torch.cat([_outputs(run_alone(Tokens(t[None], torch.ones_like(t[None], dtype=torch.bool))), None)
                               for t in texts])  # fmt: skip
        except Exception:  # a model may need other inputs
            return None
        padded = _padded(texts, padding_side, pad_id, positions(model)[0])
        try:
            found = _outputs(run_padded(padded), padded.mask)
        except Exception as error:  # models reject padding with errors of any type
            return f"the model raises {type(error).__name__}: {error}"
    if not bool(alone.isfinite().all()):
        return None
    if found.shape != alone.shape:
        return f"outputs have shape {list(found.shape)} instead of {list(alone.shape)}"
    precision = max((torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()), default=0.0)
    scale, difference = float(alone.abs().max()), float((found - alone).abs().max())
    if difference <= max(2e-3, 16 * precision) * scale:
        return None
    return f"outputs differ by {difference:.2g}, their size is {scale:.2g}"


def _run(model: nn.Module, texts: Tokens) -> object:
    return model(input_ids=texts.ids, attention_mask=texts.mask.long())


def _outputs(output: object, mask: Tensor | None) -> Tensor:
    """Return logits `[B, C]`, or the outputs of all tokens, float32 on the CPU."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    values: Tensor = cast(Sequence[Tensor], output)[0] if logits is None else logits
    if values.dim() == 3:
        values = values[mask] if mask is not None else values.flatten(0, 1)
    return values.float().cpu()


def _trial_texts(model: nn.Module, pad_id: int) -> list[Tensor] | None:
    """Return ids of short texts without special tokens, closed by the end token. None if the model has no ids."""
    try:
        table: Any = getattr(model, "get_input_embeddings")  # noqa: B009  # nn.Module declares attributes as tensors
        weight = table().weight
    except (AttributeError, TypeError, NotImplementedError):
        return None
    limit = positions(model)[0]
    if not isinstance(weight, Tensor) or weight.is_meta or (limit is not None and limit <= max(TRIAL_LENGTHS) + 1):
        return None
    config = getattr(model, "config", None)
    named = (getattr(config, f"{name}_token_id", None) for name in _SPECIAL)
    special = {pad_id, *(number for number in named if isinstance(number, int))}
    ids = [n for n in range(min(weight.shape[0], 64)) if n not in special]
    if len(ids) < 2:
        return None
    end = getattr(config, "eos_token_id", None)
    closing = [end] if isinstance(end, int) and 0 <= end < weight.shape[0] else []
    texts = []
    for row, length in enumerate(TRIAL_LENGTHS):
        first = [ids[(5 * row + 7 * k) % len(ids)] for k in range(length - len(closing))]
        texts.append(torch.tensor(first + closing, device=weight.device))
    return texts


def _padded(texts: list[Tensor], padding_side: str, pad_id: int, limit: int | None) -> Tokens:
    width = max(TRIAL_LENGTHS) + TRIAL_PADDING
    width = width if limit is None else min(width, limit)
    ids = torch.full((len(texts), width), pad_id, device=texts[0].device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, True
    if padding_side == "left":
        to_left(mask, ids)
    return Tokens(ids, mask, padding_side)


@contextmanager
def _trial_mode(model: nn.Module) -> Iterator[None]:
    """Run a model without gradients, hooks and compilation, in evaluation mode. Restore everything at the end."""
    training = {module: module.training for module in model.modules()}
    # PyTorch has no public way to call a module without the hooks of the user, which may count or collect.
    hooks = {module: (module._forward_hooks, module._forward_pre_hooks) for module in training}
    device = next(model.parameters()).device
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            model.eval()
            for module in training:
                module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
            yield
        finally:
            for module, mode in training.items():
                module.training = mode
                module._forward_hooks, module._forward_pre_hooks = hooks[module]
