"""Text models on mixed batches: any Hugging Face encoder takes a `TokenPairs` through `MixedInputs`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spurmix.core.deprecation import renamed_argument, renamed_attribute
from spurmix.data.batch import TokenPairs, Tokens
from spurmix.data.sources.tokens import positions
from spurmix.ops import functional, validate
from spurmix.train.models import HEAD_NAMES, head_layer

MixAt = Literal["embeddings", "features"]

# Embedding blocks that compute dropout(LayerNorm(word + position + type)), by the last package and class of their type.
_BLOCKS = {
    ("bert", "BertEmbeddings"),
    ("camembert", "CamembertEmbeddings"),
    ("distilbert", "Embeddings"),
    ("electra", "ElectraEmbeddings"),
    ("roberta", "RobertaEmbeddings"),
    ("xlm_roberta", "XLMRobertaEmbeddings"),
}


class MixedInputs(nn.Module):
    """A Hugging Face text model that takes mixed batches: `model(batch.input)`.

    With mix_at="embeddings", of a `TokenPairs` with table E, this is

        model(inputs_embeds=lam * E[ids] + (1 - lam) * E[partner_ids], attention_mask=mask | partner_mask)

    where padding embeds to nothing (a position of one text alone keeps that text's embedding times its weight), and a
    text of weight 0 has no say in the attention mask, so that lam = 1 gives the unmixed model's logits. With
    mix_at="features" both texts are encoded, and what the last layer of the head takes is mixed: twice the work, but no
    mixed embedding is ever seen. The embedding block of BERT's kin (positions, types, LayerNorm) is computed in the same
    pass, and the table's gradient lies in memory that is used again, see `functional.mix_bert_embeddings`.

    Everything else goes to the model as it came: `Tokens`, a mapping of its keyword arguments, or ids; so do pairs whose
    lam is 1 throughout.

    Parameters, `state_dict`, attributes such as `config` and methods such as `save_pretrained` are those of the inner
    model.

    Args:
        model: takes `input_ids`, `attention_mask` and `inputs_embeds` and has `get_input_embeddings()`: BERT, MiniLM,
            DistilBERT, RoBERTa and their kin, with or without a classification head.
        mix_at: "embeddings" or "features" (of a model whose head is named classifier, fc, head or score).

    Raises:
        TypeError, ValueError: for a model whose embeddings cannot be mixed from outside, or another `mix_at`.

    Example:
        >>> model = MixedInputs(models.bert(2, pretrained="folder"))  # doctest: +SKIP
        >>> finetune(model, MixLoader(TokenSource(ids), groups, policy, 16))  # doctest: +SKIP
    """

    where = renamed_attribute("mix_at")

    @renamed_argument(where="mix_at")
    def __init__(self, model: nn.Module, mix_at: MixAt = "embeddings") -> None:
        super().__init__()
        if mix_at not in ("embeddings", "features"):
            raise ValueError(f'mix_at must be "embeddings" or "features", got {mix_at!r}')
        if isinstance(model, MixedInputs):
            raise TypeError("model is a MixedInputs already")
        if not isinstance(model, nn.Module) or not callable(getattr(model, "get_input_embeddings", None)):
            raise TypeError(f"model must be a Hugging Face text model, got {type(model).__name__}")
        self.model: Any = model
        self.mix_at: MixAt = mix_at
        if mix_at == "features":
            if not any(isinstance(getattr(model, name, None), nn.Module) for name in HEAD_NAMES):
                raise ValueError(f'mix_at="features": {type(model).__name__} has no head ({", ".join(HEAD_NAMES)})')
            head_layer(model)
        else:
            _check_embeddings(model)
        self._longest, self._before = positions(model)
        self._buffer = functional.GradientBuffer()
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the model returns for `TokenPairs`, `Tokens`, a mapping of keyword arguments, or its own arguments."""
        first = inputs[0] if len(inputs) == 1 else None
        if isinstance(first, TokenPairs):
            self._check(first)
            # Elsewhere than on the CPU the question would wait for the device.
            if first.lam.device.type == "cpu" and bool((first.lam == 1).all()):
                return self._plain(first.ids, first.mask, options)
            return (self._features if self.mix_at == "features" else self._embeddings)(first, options)
        if isinstance(first, Tokens):
            self._check(first)
            return self._plain(first.ids, first.mask, options)
        if isinstance(first, Mapping):
            return self.model(**first, **options)
        return self.model(*inputs, **options)

    def through(self, outer: nn.Module) -> MixedInputs:
        """The same, but calling `outer`, which holds the model: DistributedDataParallel or a compiled model."""
        if not any(module is self.model for module in outer.modules()):
            raise ValueError(f"outer: {type(outer).__name__} does not hold the model")
        view = copy.copy(self)
        view.__dict__["_called"] = outer  # not a submodule
        return view

    def _run(self, **options: Any) -> Any:
        return self.__dict__.get("_called", self.model)(**options)

    def _check(self, texts: TokenPairs | Tokens) -> None:
        """Dtypes and shapes that belong together, and a length the model takes."""
        ids = validate.tensor(texts.ids, "ids", (torch.int64,), ("B", "S"))
        batch, length = ids.shape
        validate.tensor(texts.mask, "mask", (torch.bool,), (batch, length))
        if isinstance(texts, TokenPairs):
            validate.tensor(texts.partner_ids, "partner_ids", (torch.int64,), (batch, length))
            validate.tensor(texts.partner_mask, "partner_mask", (torch.bool,), (batch, length))
            lam = validate.tensor(texts.lam, "lam", (torch.float32,), (batch,))
            if lam.is_cpu and not bool(((lam >= 0) & (lam <= 1)).all()):
                raise ValueError(f"lam must lie in [0, 1], got {lam.min()} to {lam.max()}")
        if self._longest is not None and ids.shape[1] > self._longest:
            raise ValueError(
                f"texts of {ids.shape[1]} tokens: {type(self.model).__name__} takes at most {self._longest}; truncate them"
            )

    def _plain(self, ids: Tensor, mask: Tensor, options: dict[str, Any]) -> Any:
        rows = self.model.get_input_embeddings().weight.shape[0]
        if ids.device.type == "cpu" and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise IndexError(
                f"ids must lie in [0, {rows}), the model's vocabulary; got {int(ids.min())} to {int(ids.max())}"
            )
        return self._run(input_ids=ids, attention_mask=mask.long(), **options)

    def _embeddings(self, pairs: TokenPairs, options: dict[str, Any]) -> Any:
        table = self.model.get_input_embeddings()
        lam = pairs.lam[:, None]
        attended = (pairs.mask & (lam > 0)) | (pairs.partner_mask & (lam < 1))
        if self._before is not None and "position_ids" not in options:  # these models see padding in ids alone
            options = {**options, "position_ids": attended.cumsum(1) * attended + self._before}
        lookups = (pairs.ids, pairs.partner_ids, pairs.lam, pairs.mask, pairs.partner_mask)
        gradient: dict[str, Any] = {"padding_idx": table.padding_idx, "grad_buffer": self._buffer}
        # A compiled model would be compiled again for every result that stands in for its block's.
        compiled = torch.compiler.is_compiling() or _is_compiled(self.__dict__.get("_called", self.model))
        block = None if compiled else _embedding_block(self.model)
        if block is not None:
            types = getattr(block, "token_type_embeddings", None)
            norm = block.LayerNorm
            mixed = functional.mix_bert_embeddings(
                table.weight, block.position_embeddings.weight, None if types is None else types.weight,
                norm.weight, norm.bias, *lookups, position_ids=options.get("position_ids"),
                token_type_ids=options.get("token_type_ids"), eps=norm.eps, **gradient,
            )  # fmt: skip
            with _result(block, block.dropout(mixed)):
                return self._run(inputs_embeds=mixed, attention_mask=attended.long(), **options)
        mixed = functional.mix_embeddings(table.weight, *lookups, **gradient)
        scale = getattr(table, "embed_scale", None)
        if scale is not None:
            mixed = mixed * scale
        return self._run(inputs_embeds=mixed, attention_mask=attended.long(), **options)

    def _features(self, pairs: TokenPairs, options: dict[str, Any]) -> Any:
        size = len(pairs)

        def mix(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = arguments[0]
            if x.dim() != 2 or x.shape[0] != 2 * size:
                raise TypeError(
                    f'mix_at="features": the head must take pooled features [{2 * size}, D], got {list(x.shape)}'
                )
            return (torch.lerp(x[size:], x[:size], pairs.lam[:, None].to(x.dtype)), *arguments[1:])

        hook = head_layer(self.model).register_forward_pre_hook(mix)
        try:
            return self._plain(
                torch.cat([pairs.ids, pairs.partner_ids]), torch.cat([pairs.mask, pairs.partner_mask]), options
            )
        finally:
            hook.remove()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("model")
            if inner is None:  # half built, as in copy.deepcopy
                raise
            return getattr(inner, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffer": functional.GradientBuffer()}  # memory is nobody else's

    def named_parameters(self, prefix: str = "", *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The inner model's parameters by the inner model's names."""
        return self.model.named_parameters(prefix, *args, **options)


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


def _embedding_block(model: Any) -> Any:
    """The block that the model's embedding table stands in, where `mix_bert_embeddings` computes the same, else None."""
    table = model.get_input_embeddings()
    if type(table) is not nn.Embedding:
        return None
    for module in model.modules():
        kind = type(module)
        if (*kind.__module__.split(".")[-2:-1], kind.__name__) in _BLOCKS and module.word_embeddings is table:
            absolute = getattr(module, "position_embedding_type", "absolute") == "absolute"
            return module if absolute and type(module.LayerNorm) is nn.LayerNorm else None
    return None


@contextmanager
def _result(module: nn.Module, value: Tensor) -> Iterator[None]:
    """Whatever `module` is called with, it returns `value`."""
    before = module.__dict__.get("forward")
    module.forward = lambda *_, **__: value
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a `MixedInputs`, or `model` itself."""
    return model.model if isinstance(model, MixedInputs) else model


def apply(model: nn.Module, inputs: Any) -> Any:
    """`model(inputs)`, where `Tokens` go to a model that knows nothing of them by keyword.

    Raises:
        TypeError: for `TokenPairs` and a Hugging Face model that is not wrapped.
    """
    if isinstance(model, MixedInputs) or not callable(getattr(model, "get_input_embeddings", None)):
        return model(inputs)
    if isinstance(inputs, TokenPairs):
        raise TypeError(f"{type(model).__name__} does not take mixed texts; wrap it: MixedInputs(model)")
    if isinstance(inputs, Tokens):
        return model(input_ids=inputs.ids, attention_mask=inputs.mask.long())
    return model(inputs)


def _check_embeddings(model: nn.Module) -> None:
    """Raise TypeError where mixing the rows of the embedding table is not what the model's own lookup does."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    name = type(model).__name__
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise TypeError(f"{name} takes no inputs_embeds, so embeddings cannot be mixed outside of it")
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(table, nn.Embedding):
        raise TypeError(f"{name}: the input embeddings must be an nn.Embedding, got {type(table).__name__}")
    if table.max_norm is not None or table.scale_grad_by_freq:
        raise TypeError(f"{name}: embeddings with max_norm or scale_grad_by_freq cannot be mixed")
    if type(table).forward is not nn.Embedding.forward and getattr(table, "embed_scale", None) is None:
        raise TypeError(f'{name}: {type(table).__name__} computes more than a lookup; use mix_at="features"')
    # Classifiers on decoders look for the last token that is no padding by its id; their head has that name, but for two.
    by_last = isinstance(getattr(model, "score", None), nn.Module) or name.startswith(("CTRL", "ModernBertDecoder"))
    if type(model).__module__.startswith("transformers.") and by_last:
        raise TypeError(
            f"{name} classifies by the last token, which it finds by ids and mixed texts have not; take an encoder"
        )


def _without_prefix(_: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    inner = f"{prefix}model."
    for key in [k for k in state if k.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _with_prefix(_: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for key in [k for k in state if k.startswith(prefix)]:
        state[f"{prefix}model.{key.removeprefix(prefix)}"] = state.pop(key)
