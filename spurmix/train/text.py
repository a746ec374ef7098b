"""Text models on mixed batches: `MixedInputs` lets a Hugging Face encoder accept a `TokenPairs`."""

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
from spurmix.data.sources import padding
from spurmix.data.sources.padding import positions
from spurmix.ops import functional, validate
from spurmix.train.models import HEAD_NAMES, head_layer

MixAt = Literal["embeddings", "features"]

_BLOCKS = {
    ("bert", "BertEmbeddings"),
    ("camembert", "CamembertEmbeddings"),
    ("distilbert", "Embeddings"),
    ("electra", "ElectraEmbeddings"),
    ("roberta", "RobertaEmbeddings"),
    ("xlm_roberta", "XLMRobertaEmbeddings"),
}
"""Package and class of the embedding blocks that compute dropout(LayerNorm(word + position + type))."""


class MixedInputs(nn.Module):
    """Hugging Face text model that accepts mixed batches: `model(batch.input)`.

    With `mix_at="embeddings"`, the embeddings of a `TokenPairs` are mixed. With the embedding table E, the result is

        model(inputs_embeds=lam * E[ids] + (1 - lam) * E[partner_ids], attention_mask=mask | partner_mask)

    The embedding of padding is 0. A text of weight 0 does not contribute to the attention mask, so that lam = 1 gives the
    logits of the unmixed model. For models of the BERT family, positions, types and LayerNorm are computed in the same
    pass, see `functional.mix_bert_embeddings`.

    With `mix_at="features"`, both texts are encoded, and the input of the last layer of the head is mixed. This takes
    twice the time, but the encoder sees only unmixed texts.

    Other inputs (`Tokens`, a mapping of keyword arguments, ids) are passed to the model unchanged. On the CPU, pairs whose
    lam is 1 everywhere are passed as unmixed texts.

    Parameters, `state_dict`, attributes such as `config` and methods such as `save_pretrained` are those of the inner
    model.

    Args:
        model: Model with the arguments `input_ids`, `attention_mask` and `inputs_embeds` and the method
            `get_input_embeddings()`: BERT, MiniLM, DistilBERT, RoBERTa and similar encoders, with or without a
            classification head.
        mix_at: "embeddings", or "features" for a model with a head named classifier, fc, head or score.

    Raises:
        TypeError: If the embeddings of the model cannot be mixed outside of it.
        ValueError: If `mix_at` is invalid, or the model has no head for "features".

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
            raise TypeError("model is already a MixedInputs; pass the inner model")
        if not isinstance(model, nn.Module) or not callable(getattr(model, "get_input_embeddings", None)):
            raise TypeError(f"model must be a Hugging Face text model, got {type(model).__name__}")
        self.model: Any = model
        self.mix_at: MixAt = mix_at
        if mix_at == "features":
            if not any(isinstance(getattr(model, name, None), nn.Module) for name in HEAD_NAMES):
                raise ValueError(
                    f'mix_at="features" requires a head named {", ".join(HEAD_NAMES)}; {type(model).__name__} has none'
                )
            head_layer(model)
        else:
            _check_embeddings(model)
        self._longest, self._before = positions(model)
        self._buffer = functional.GradientBuffer()
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)
        self._accepted_sides: dict[str, str | None] = {}
        self._check_mixing()

    def _check_mixing(self) -> None:
        """Check that the model accepts padded mixed texts on the side on which it accepts padded texts."""
        problem = self._side_problem("right")
        accepts_right = padding.padding_problem(self.model, "right", self._pad_id) is None
        if problem is not None and (accepts_right or self._side_problem("left") is not None):
            raise TypeError(
                f"{type(self.model).__name__} finds the last token by ids or depends on padding in another way, so that "
                f"padded mixed texts give wrong outputs ({problem}); use an encoder such as BERT"
            )

    @property
    def _pad_id(self) -> int:
        pad_id = getattr(getattr(self.model, "config", None), "pad_token_id", None)
        return pad_id if isinstance(pad_id, int) else 0

    def _side_problem(self, side: str) -> str | None:
        """Explain why texts padded on a side cannot be mixed, or return None. The result is stored."""
        if side not in self._accepted_sides:
            problem = padding.padding_problem(self.model, side, self._pad_id)
            if problem is None and self.mix_at == "embeddings":
                problem = padding.compare(self.model, side, self._pad_id, self._run_as_pairs)
            self._accepted_sides[side] = problem
        return self._accepted_sides[side]

    def _run_as_pairs(self, texts: Tokens) -> object:
        """Run the model on embeddings of texts, each mixed with a partner of weight 0."""
        lam = torch.ones(len(texts), device=texts.ids.device)
        return self._embeddings(
            TokenPairs(texts.ids, texts.ids.flip(0), texts.mask, texts.mask.flip(0), lam, texts.padding_side), {}
        )

    def forward(self, *inputs: object, **options: object) -> Any:
        """Run the model.

        Args:
            *inputs: A `TokenPairs`, `Tokens`, a mapping of keyword arguments, or the arguments of the model.
            **options: Further keyword arguments of the model.

        Returns:
            The output of the model.
        """
        first = inputs[0] if len(inputs) == 1 else None
        if isinstance(first, TokenPairs):
            self._check(first)
            # On a GPU, this check would wait for the device.
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
        """Return a view that calls the model through a wrapper such as DistributedDataParallel or a compiled model."""
        if not any(module is self.model for module in outer.modules()):
            raise ValueError(f"outer must be a wrapper of the model, {type(outer).__name__} does not contain it")
        view = copy.copy(self)
        view.__dict__["_called"] = outer  # not a submodule
        return view

    def _run(self, **options: object) -> object:
        return self.__dict__.get("_called", self.model)(**options)

    def _check(self, texts: TokenPairs | Tokens) -> None:
        """Check dtypes, shapes, lam and the number of tokens."""
        if self._accepted_sides.get(texts.padding_side, "") is not None:  # not accepted, or not tried yet
            problem = self._side_problem(texts.padding_side)
            if problem is not None:
                raise ValueError(
                    f"{type(self.model).__name__} does not accept texts that are padded on the {texts.padding_side} "
                    f"({problem}); use the tokenizer of the model, or another padding_side of TokenSource"
                )
        ids = validate.tensor(texts.ids, "ids", (torch.int64,), ("B", "S"))
        batch, length = ids.shape
        validate.tensor(texts.mask, "mask", (torch.bool,), (batch, length))
        if isinstance(texts, TokenPairs):
            validate.tensor(texts.partner_ids, "partner_ids", (torch.int64,), (batch, length))
            validate.tensor(texts.partner_mask, "partner_mask", (torch.bool,), (batch, length))
            lam = validate.tensor(texts.lam, "lam", (torch.float32,), (batch,))
            if lam.is_cpu and not bool(((lam >= 0) & (lam <= 1)).all()):
                raise ValueError(f"lam must be in [0, 1], got {lam.min()} to {lam.max()}")
        if self._longest is not None and ids.shape[1] > self._longest:
            raise ValueError(
                f"{type(self.model).__name__} accepts at most {self._longest} tokens, got {ids.shape[1]}; truncate the texts"
            )

    def _plain(self, ids: Tensor, mask: Tensor, options: dict[str, object]) -> object:
        """Run the model on unmixed texts."""
        rows = self.model.get_input_embeddings().weight.shape[0]
        if ids.device.type == "cpu" and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise IndexError(
                f"ids must be in [0, {rows}), the vocabulary of the model, got {int(ids.min())} to {int(ids.max())}"
            )
        return self._run(input_ids=ids, attention_mask=mask.long(), **options)

    def _embeddings(self, pairs: TokenPairs, options: dict[str, Any]) -> object:
        """Run the model on mixed embeddings."""
        table = self.model.get_input_embeddings()
        lam = pairs.lam[:, None]
        attended = (pairs.mask & (lam > 0)) | (pairs.partner_mask & (lam < 1))
        if self._before is not None and "position_ids" not in options:  # these models compute positions from ids
            options = {**options, "position_ids": attended.cumsum(1) * attended + self._before}
        lookups = (pairs.ids, pairs.partner_ids, pairs.lam, pairs.mask, pairs.partner_mask)
        gradient: dict[str, Any] = {"padding_idx": table.padding_idx, "grad_buffer": self._buffer}
        # Replacing the block of a compiled model would compile it again in every step.
        compiled = torch.compiler.is_compiling() or _is_compiled(self.__dict__.get("_called", self.model))
        found = None if compiled else _embedding_block(self.model)
        if found is not None:
            name, block = found
            types = getattr(block, "token_type_embeddings", None)
            norm = block.LayerNorm
            mixed = functional.mix_bert_embeddings(
                table.weight, block.position_embeddings.weight, None if types is None else types.weight,
                norm.weight, norm.bias, *lookups, position_ids=options.get("position_ids"),
                token_type_ids=options.get("token_type_ids"), eps=norm.eps, **gradient,
            )  # fmt: skip
            with _replaced(self.model, name, block.dropout(mixed)):
                return self._run(inputs_embeds=mixed, attention_mask=attended.long(), **options)
        mixed = functional.mix_embeddings(table.weight, *lookups, **gradient)
        scale = getattr(table, "embed_scale", None)
        if scale is not None:
            mixed = mixed * scale
        return self._run(inputs_embeds=mixed, attention_mask=attended.long(), **options)

    def _features(self, pairs: TokenPairs, options: dict[str, object]) -> object:
        """Run the model on both texts, and mix the input of the last layer."""
        size = len(pairs)

        def mix(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = arguments[0]
            if x.dim() != 2 or x.shape[0] != 2 * size:
                raise TypeError(
                    f'mix_at="features" requires a head on pooled features [{2 * size}, D], got {list(x.shape)}'
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
            if inner is None:  # not initialized yet, for example in copy.deepcopy
                raise
            return getattr(inner, name)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_buffer": functional.GradientBuffer()}  # copies do not share memory

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the parameters of the inner model by its names. See `nn.Module.named_parameters`."""
        return self.model.named_parameters(prefix, recurse, remove_duplicate)


def _is_compiled(model: nn.Module) -> bool:
    # PyTorch has no public query for models that torch.compile or nn.Module.compile compiled.
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


def _embedding_block(model: Any) -> tuple[str, Any] | None:
    """Find the block with the embedding table, and its name. None if `mix_bert_embeddings` does not compute the same."""
    table = model.get_input_embeddings()
    if type(table) is not nn.Embedding:
        return None
    for name, module in model.named_modules():
        kind = type(module)
        if (*kind.__module__.split(".")[-2:-1], kind.__name__) in _BLOCKS and module.word_embeddings is table:
            absolute = getattr(module, "position_embedding_type", "absolute") == "absolute"
            return (name, module) if absolute and type(module.LayerNorm) is nn.LayerNorm else None
    return None


class _Computed(nn.Module):
    """Stand-in for an embedding block with a known output. It has the parameters, buffers and attributes of the block."""

    def __init__(self, block: nn.Module, output: Tensor) -> None:
        super().__init__()
        self.block, self.output = block, output

    def forward(self, *_: object, **__: object) -> Tensor:
        return self.output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


@contextmanager
def _replaced(model: nn.Module, name: str, output: Tensor) -> Iterator[None]:
    """Replace a submodule by a stand-in that returns `output`."""
    block = model.get_submodule(name)
    model.set_submodule(name, _Computed(block, output))
    try:
        yield
    finally:
        model.set_submodule(name, block)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a `MixedInputs`, or `model` itself."""
    return model.model if isinstance(model, MixedInputs) else model


def apply(model: nn.Module, inputs: object) -> Any:
    """Run a model. A Hugging Face model gets `Tokens` as keyword arguments.

    Args:
        model: Model.
        inputs: Inputs of a batch.

    Returns:
        The output of the model.

    Raises:
        TypeError: If a Hugging Face model gets `TokenPairs` and is not a `MixedInputs`.
    """
    if isinstance(model, MixedInputs) or not callable(getattr(model, "get_input_embeddings", None)):
        return model(inputs)
    if isinstance(inputs, TokenPairs):
        raise TypeError(f"{type(model).__name__} does not accept mixed texts; use MixedInputs(model)")
    if isinstance(inputs, Tokens):
        return model(input_ids=inputs.ids, attention_mask=inputs.mask.long())
    return model(inputs)


def _check_embeddings(model: nn.Module) -> None:
    """Raise a TypeError if rows of the embedding table cannot be mixed outside of the model."""
    model = getattr(model, "_orig_mod", model)  # PyTorch has no public access to the model in a compiled one
    name = type(model).__name__
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise TypeError(f"{name} must accept inputs_embeds, so that embeddings can be mixed outside of it")
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(table, nn.Embedding):
        raise TypeError(f"{name}: the input embeddings must be an nn.Embedding, got {type(table).__name__}")
    if table.max_norm is not None or table.scale_grad_by_freq:
        raise TypeError(f"{name}: embeddings with max_norm or scale_grad_by_freq cannot be mixed")
    if type(table).forward is not nn.Embedding.forward and getattr(table, "embed_scale", None) is None:
        raise TypeError(f'{name}: {type(table).__name__} is not a plain lookup; use mix_at="features"')


def _without_prefix(_: nn.Module, state: dict[str, object], prefix: str, metadata: object) -> None:
    """Remove the name of the inner model from the keys of a state dict."""
    inner = f"{prefix}model."
    for key in [k for k in state if k.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _with_prefix(_: nn.Module, state: dict[str, object], prefix: str, *rest: object) -> None:
    """Add the name of the inner model to the keys of a state dict."""
    for key in [k for k in state if k.startswith(prefix)]:
        state[f"{prefix}model.{key.removeprefix(prefix)}"] = state.pop(key)
