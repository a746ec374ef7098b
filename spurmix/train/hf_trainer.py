"""MixTrainer: the Trainer of Hugging Face, fed with mixed texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer

from spurmix.core.deprecation import renamed_argument, renamed_attribute
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.batch import TokenPairs
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.tokens import TokenSource
from spurmix.ops import functional
from spurmix.train.models import logits_of
from spurmix.train.text import MixAt, MixedInputs


class MixTrainer(Trainer):  # type: ignore[misc]  # transformers has no types here
    """A `transformers.Trainer` whose training batches are drawn and mixed by a policy; the rest is the Trainer's.

    An existing script changes in three lines::

        from spurmix import GroupIndex, MixTrainer, policies
        groups = GroupIndex(train_labels, train_attributes)
        trainer = MixTrainer(..., groups=groups, policy=policies.balance_attributes())  # was Trainer(...)

    Batch k of the run holds samples k B to (k + 1) B of the policy's sequence with seed `args.data_seed` (else `args.seed`),
    where B is `per_device_train_batch_size` times the number of processes; an epoch is as many batches as plain sampling
    would take. The loss is `mixed_cross_entropy` with `args.label_smoothing_factor`. Evaluation, saving, resuming,
    precision and accumulation are the Trainer's own; `data_collator` and `dataloader_num_workers` concern evaluation only:
    training batches take a fraction of a millisecond.

    Args:
        train_dataset: tokenised texts with `input_ids` and, if padded, `attention_mask`, in the order of `groups`: a
            `datasets.Dataset`, any sequence of dicts, or a `TokenSource` (which also decides padding).
        groups: the `GroupIndex` of the training examples; the labels are its labels.
        policy: see `spurmix.policies`.
        bucket: batches among which a window's samples are sorted by length, see `MixLoader`.
        mix_at: "embeddings" or "features", see `MixedInputs`.
        options: all arguments of `Trainer`.

    Raises:
        TypeError, ValueError: for a dataset that does not fit the groups or the model, or what mixing does not go with:
            `compute_loss_func`, FSDP, DeepSpeed, several GPUs in one process (use torchrun).
    """

    where = renamed_attribute("mix_at")

    @renamed_argument(where="mix_at")
    def __init__(
        self,
        *arguments: Any,
        groups: GroupIndex,
        policy: MixPolicy,
        bucket: int = 1,
        mix_at: MixAt = "embeddings",
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        if getattr(self, "compute_loss_func", None) is not None:
            raise ValueError("compute_loss_func: the loss of mixed batches is mixed_cross_entropy")
        if self.args.n_gpu > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "mixed batches need a process per GPU (torchrun), each with the whole model: no FSDP or DeepSpeed"
            )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch: the Trainer divides by accumulation
        self.groups, self.policy, self.bucket, self.mix_at = groups, policy, bucket, mix_at
        self.train_source = _token_source(
            self.train_dataset, groups, getattr(self, "processing_class", None), self.model
        )
        self.train_source.check_model(self.model)
        self._mixed = MixedInputs(self.model, mix_at)
        self._through: tuple[nn.Module, MixedInputs] | None = None
        self._loader(1)

    def _loader(self, epochs: int) -> tuple[MixLoader, int]:
        """The loader of `epochs` epochs, and the batches of one."""
        args = self.args
        size = self._train_batch_size * args.world_size
        batches = len(self.train_source) / size
        length = max(1, math.floor(batches) if args.dataloader_drop_last else math.ceil(batches))
        if args.max_steps > 0:
            epochs = math.ceil(args.max_steps / math.ceil(length / args.gradient_accumulation_steps))
        loader = MixLoader(
            self.train_source,
            self.groups,
            self.policy,
            size,
            seed=args.seed if args.data_seed is None else args.data_seed,
            steps=length * epochs,
            rank=args.process_index,
            world_size=args.world_size,
            bucket=self.bucket,
        )
        return loader, length

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The mixed batches of an epoch, as dicts of tensors."""
        loader, length = self._loader(math.ceil(self.args.num_train_epochs))
        return _Epochs(_Batches(loader), batch_sampler=_Steps(length), collate_fn=_only)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **options: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The mixed loss of a training batch; what else comes, as in evaluation, is the Trainer's."""
        if "partner_ids" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, **options)
        lam = inputs["lam"]
        pairs = TokenPairs(
            inputs["input_ids"], inputs["partner_ids"], inputs["attention_mask"], inputs["partner_mask"], lam
        )
        outputs = self._mixing(model)(pairs)
        smoothing = self.args.label_smoothing_factor
        loss = functional.mixed_cross_entropy(
            logits_of(outputs), inputs["labels"], inputs["partner_labels"], lam, label_smoothing=smoothing
        )
        return (loss, outputs) if return_outputs else loss

    def _mixing(self, model: nn.Module) -> MixedInputs:
        """What mixes for `model`, the Trainer's own or what it was wrapped in, such as DistributedDataParallel."""
        if self._mixed.model is not self.model:  # one of model_init, or unwrapped again
            self._mixed = MixedInputs(self.model, self.mix_at)
        if model is self.model:
            return self._mixed
        if self._through is None or self._through[0] is not model:
            self._through = (model, self._mixed.through(model))
        return self._through[1]


class _Batches(Dataset[dict[str, Tensor]]):
    """Item k is batch number k of the run; the length is the number of examples, which the Trainer reports."""

    def __init__(self, loader: MixLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return self.loader.groups.num_examples

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        batch = self.loader.batch(step)
        pairs = batch.input
        assert isinstance(pairs, TokenPairs)
        return {
            "input_ids": pairs.ids,
            "attention_mask": pairs.mask,
            "partner_ids": pairs.partner_ids,
            "partner_mask": pairs.partner_mask,
            "lam": batch.lam,
            "labels": batch.label,
            "partner_labels": batch.partner_label,
            "index": batch.index,
            "partner": batch.partner,
            "group": batch.group,
        }


class _Steps(Sampler[list[int]]):
    """Numbers of an epoch's batches. As a batch sampler, it lets a resumed run skip batches without making them."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is iterated over next; the Trainer calls it here where it has wrapped the sampler to skip."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        return iter([step] for step in range(self.epoch * self.length, (self.epoch + 1) * self.length))


class _Epochs(DataLoader[Any]):
    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, _Steps)
        self.batch_sampler.set_epoch(epoch)


def _only(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return batches[0]


_COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "labels", "label")


def _token_source(dataset: Any, groups: GroupIndex, tokenizer: Any, model: nn.Module) -> TokenSource:
    """`dataset` as a TokenSource without its padding, checked against the groups and the tokenizer."""
    if not isinstance(groups, GroupIndex):
        raise TypeError(f"groups must be a GroupIndex, got {type(groups).__name__}")
    if not hasattr(dataset, "__len__"):
        raise TypeError(f"train_dataset must be a dataset with a length or a TokenSource, got {type(dataset).__name__}")
    if len(dataset) != groups.num_examples:
        raise ValueError(f"train_dataset has {len(dataset)} examples, the groups have {groups.num_examples}")
    tokenizer = tokenizer if hasattr(tokenizer, "get_vocab") else None
    if isinstance(dataset, TokenSource):
        dataset.check_tokenizer(tokenizer)
        return dataset
    columns = _columns(dataset)
    if "input_ids" not in columns:
        raise ValueError("train_dataset: examples need input_ids; tokenise the texts first")
    rows = []
    masks, types = columns.get("attention_mask"), columns.get("token_type_ids")
    for n, row in enumerate(columns["input_ids"]):
        kept = np.asarray(row)
        inside = np.asarray(masks[n], dtype=bool) if masks is not None else np.ones(kept.shape, dtype=bool)
        if inside.shape != kept.shape:
            raise ValueError(f"train_dataset[{n}]: attention_mask has another shape than input_ids")
        if types is not None and np.asarray(types[n])[inside].any():
            raise ValueError(f"train_dataset[{n}]: token_type_ids other than 0; pairs of sentences cannot be mixed")
        rows.append(kept[inside])
    labels = columns.get("labels", columns.get("label"))
    if labels is not None:
        differ = np.flatnonzero(np.asarray(labels) != groups.labels)
        if differ.size:
            n = int(differ[0])
            raise ValueError(f"train_dataset[{n}]: label {labels[n]}, but the groups say {groups.labels[n]}")
    padding = getattr(tokenizer, "pad_token_id", None)
    if padding is None:
        padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    return TokenSource.from_lists(rows, pad_id=padding or 0, pad_multiple=1, tokenizer=tokenizer)


def _columns(dataset: Any) -> dict[str, list[Any]]:
    """The columns that matter, of a `datasets.Dataset` or of a sequence of dicts."""
    names = getattr(dataset, "column_names", None)
    if names is not None:
        return {name: list(dataset[name]) for name in _COLUMNS if name in names}
    first = dataset[0]
    if not isinstance(first, Mapping):
        raise TypeError(f"train_dataset: examples must be dicts, got {type(first).__name__}")
    present = [name for name in _COLUMNS if name in first]
    columns: dict[str, list[Any]] = {name: [] for name in present}
    for n in range(len(dataset)):
        example = dataset[n]
        for name in present:
            columns[name].append(example[name])
    return columns
