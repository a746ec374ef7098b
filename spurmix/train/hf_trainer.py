"""MixTrainer: a Hugging Face Trainer on mixed texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer

from spurmix.core.deprecation import renamed_argument, renamed_attribute
from spurmix.core.group_join import check_name_order
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.batch import TokenPairs
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.tokens import TokenSource
from spurmix.ops import functional
from spurmix.train.models import logits_of
from spurmix.train.text import MixAt, MixedInputs


class MixTrainer(Trainer):  # type: ignore[misc]  # transformers has no types here
    """A `transformers.Trainer` that draws and mixes training batches by a policy.

    Batch k has the samples k B to (k + 1) B of the sequence of the policy. B is `per_device_train_batch_size` times the
    number of processes. The seed is `args.data_seed`, or `args.seed` if it is None. An epoch has as many batches as plain
    sampling. The loss is `mixed_cross_entropy` with `args.label_smoothing_factor`.

    Evaluation, saving, resuming, precision and accumulation are those of the Trainer. `data_collator` and
    `dataloader_num_workers` affect only evaluation.

    Args:
        *arguments: Positional arguments of `Trainer`.
        groups: Groups of the training examples. Their labels are the training labels.
        policy: Policy that draws and mixes examples, see `spurmix.policies`.
        bucket: Number of batches whose texts are grouped by length, see `MixLoader`.
        mix_at: "embeddings" or "features", see `MixedInputs`.
        **options: Keyword arguments of `Trainer`. `train_dataset` has tokenized texts in the order of `groups`, with
            `input_ids` and, if padded, `attention_mask`: a `datasets.Dataset`, a sequence of dicts, or a `TokenSource`,
            which also defines the padding.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the dataset does not fit the groups or the model, or an option is not supported:
            `compute_loss_func`, FSDP, DeepSpeed, or several GPUs in one process (use torchrun).

    Example:
        >>> groups = GroupIndex(train_labels, train_attributes)
        >>> trainer = MixTrainer(model, args, train_dataset=texts, groups=groups, policy=policies.balance_attributes())
        >>> trainer.train()
    """

    where = renamed_attribute("mix_at")

    @renamed_argument(where="mix_at")
    def __init__(
        self,
        *arguments: object,
        groups: GroupIndex,
        policy: MixPolicy,
        bucket: int = 1,
        mix_at: MixAt = "embeddings",
        **options: object,
    ) -> None:
        super().__init__(*arguments, **options)
        if getattr(self, "compute_loss_func", None) is not None:
            raise ValueError("compute_loss_func is not supported: the loss of mixed batches is mixed_cross_entropy")
        if self.args.n_gpu > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "MixTrainer requires one process per GPU (torchrun), each with the whole model; FSDP and DeepSpeed "
                "are not supported"
            )
        self.model_accepts_loss_kwargs = (
            False  # the loss is a mean, so the Trainer divides it by the accumulation steps
        )
        self.groups, self.policy, self.bucket, self.mix_at = groups, policy, bucket, mix_at
        self.train_source = _token_source(
            self.train_dataset, groups, getattr(self, "processing_class", None), self.model
        )
        self.train_source.check_model(self.model)
        self._mixed = MixedInputs(self.model, mix_at)
        self._through: tuple[nn.Module, MixedInputs] | None = None
        self._loader(1)

    def _loader(self, epochs: int) -> tuple[MixLoader, int]:
        """Create a loader of some epochs. Return it and the number of batches per epoch."""
        args = self.args
        size = self.get_total_train_batch_size(args) // args.gradient_accumulation_steps
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

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return a loader of the mixed batches of an epoch, as dicts of tensors."""
        loader, length = self._loader(math.ceil(self.args.num_train_epochs))
        return _Epochs(_Batches(loader), batch_sampler=_Steps(length), collate_fn=_only)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **options: object
    ) -> Tensor | tuple[Tensor, object]:
        """Compute the loss of a batch.

        Args:
            model: The model, or a wrapper of it.
            inputs: A batch. Unmixed batches of evaluation are passed to the Trainer.
            return_outputs: Whether to return the outputs too.
            **options: Further arguments of `Trainer.compute_loss`.

        Returns:
            The loss, or the loss and the outputs.
        """
        if "partner_ids" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, **options)
        lam = inputs["lam"]
        pairs = TokenPairs(
            inputs["input_ids"], inputs["partner_ids"], inputs["attention_mask"], inputs["partner_mask"], lam,
            self.train_source.padding_side,
        )  # fmt: skip
        outputs = self._mixing(model)(pairs)
        smoothing = self.args.label_smoothing_factor
        loss = functional.mixed_cross_entropy(
            logits_of(outputs), inputs["labels"], inputs["partner_labels"], lam, label_smoothing=smoothing
        )
        return (loss, outputs) if return_outputs else loss

    def _mixing(self, model: nn.Module) -> MixedInputs:
        """Return a `MixedInputs` that calls `model`, the model of the Trainer or a wrapper of it."""
        if self._mixed.model is not self.model:  # the Trainer replaced it, for example by that of model_init
            self._mixed = MixedInputs(self.model, self.mix_at)
        if model is self.model:
            return self._mixed
        if self._through is None or self._through[0] is not model:
            self._through = (model, self._mixed.through(model))
        return self._through[1]


class _Batches(Dataset[dict[str, Tensor]]):
    """Dataset of batches: item k is batch number k. The length is the number of examples, which the Trainer reports."""

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
    """Numbers of the batches of an epoch. As a batch sampler, it lets a resumed run skip batches without loading them."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch to iterate over next. The Trainer calls this method if it wrapped the sampler to skip batches."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        return iter([step] for step in range(self.epoch * self.length, (self.epoch + 1) * self.length))


class _Epochs(DataLoader[dict[str, Tensor]]):
    """Data loader that passes the epoch on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch to iterate over next."""
        assert isinstance(self.batch_sampler, _Steps)
        self.batch_sampler.set_epoch(epoch)


def _only(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate function: each list has one batch."""
    return batches[0]


_COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "labels", "label")


def _token_source(dataset: Any, groups: GroupIndex, tokenizer: object, model: nn.Module) -> TokenSource:
    """Convert a dataset to a TokenSource without padding. Check it against the groups and the tokenizer."""
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
    _check_class_names(dataset, groups)
    if "input_ids" not in columns:
        raise ValueError("train_dataset: examples must have input_ids; tokenize the texts first")
    rows = []
    masks, types = columns.get("attention_mask"), columns.get("token_type_ids")
    for n, row in enumerate(columns["input_ids"]):
        ids = np.asarray(row)
        mask = np.asarray(masks[n], dtype=bool) if masks is not None else np.ones(ids.shape, dtype=bool)
        if mask.shape != ids.shape:
            raise ValueError(
                f"train_dataset[{n}]: attention_mask and input_ids must have the same shape, "
                f"got {list(mask.shape)} and {list(ids.shape)}"
            )
        if types is not None and np.asarray(types[n])[mask].any():
            raise ValueError(f"train_dataset[{n}]: token_type_ids must be 0; pairs of sentences cannot be mixed")
        rows.append(ids[mask])
    labels = columns.get("labels", columns.get("label"))
    if labels is not None:
        differ = np.flatnonzero(np.asarray(labels) != groups.labels)
        if differ.size:
            n = int(differ[0])
            raise ValueError(f"train_dataset[{n}] has label {labels[n]}, but the groups have {groups.labels[n]}")
    padding = getattr(tokenizer, "pad_token_id", None)
    if padding is None:
        padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    return TokenSource.from_lists(rows, pad_id=padding or 0, pad_multiple=1, tokenizer=tokenizer)


def _check_class_names(dataset: object, groups: GroupIndex) -> None:
    """Check that the class labels of a `datasets.Dataset` have the numbers that they have in the groups."""
    features = getattr(dataset, "features", None)
    for column in ("labels", "label"):
        feature = features.get(column) if isinstance(features, Mapping) else None
        check_name_order(getattr(feature, "names", None) or (), groups, f"train_dataset: {column}")


def _columns(dataset: Any) -> dict[str, list[Any]]:
    """Read the columns of a `datasets.Dataset` or a sequence of dicts that training uses."""
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
