"""MixTrainer: batches, losses and weights equal those of MixLoader, mixed_cross_entropy and finetune."""

from __future__ import annotations

import copy
import difflib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from spurmix import GroupIndex, MixedInputs, MixLoader, MixTrainer, TokenSource, finetune, policies
from spurmix.ops import functional as F
from spurmix.train.hf_trainer import _token_source

RNG = np.random.default_rng(11)
N, BATCH, VOCAB, LONGEST = 50, 12, 40, 20
ROWS = [[2, *RNG.integers(4, VOCAB, RNG.integers(0, LONGEST - 1)).tolist(), 3] for _ in range(N)]
LABELS, ATTRIBUTES = RNG.integers(0, 2, N), RNG.integers(0, 2, N)
GROUPS = GroupIndex(LABELS, ATTRIBUTES)
STEPS_PER_EPOCH = 5  # 50 texts in batches of 12


def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=24, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


class Texts(Dataset[dict[str, Any]]):
    """Dataset of a Trainer: examples as dicts, optionally padded to a common length."""

    def __init__(self, padded: bool = True, **more: Any) -> None:
        self.padded, self.more = padded, more

    def __len__(self) -> int:
        return N

    def __getitem__(self, n: int) -> dict[str, Any]:
        row = ROWS[n]
        fill = LONGEST + 1 - len(row) if self.padded else 0
        ids = torch.tensor([*row, *[0] * fill])
        mask = torch.tensor([1] * len(row) + [0] * fill)
        return {"input_ids": ids, "attention_mask": mask, "labels": int(LABELS[n]), **self.more}


class Recorder(MixTrainer):
    """Keeps copies of every training batch and its loss."""

    seen: list[tuple[dict[str, torch.Tensor], float]]

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        result = super().compute_loss(model, inputs, *arguments, **options)
        if "partner_ids" in inputs:
            loss = result[0] if isinstance(result, tuple) else result
            self.__dict__.setdefault("seen", []).append(
                ({k: v.clone() for k, v in inputs.items()}, float(loss.detach()))
            )
        return result


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = dict(
        output_dir=str(folder), per_device_train_batch_size=BATCH, learning_rate=3e-3, weight_decay=0.01, seed=7,
        max_steps=7, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        lr_scheduler_type="linear", optim="adamw_torch",
    )  # fmt: skip
    return TrainingArguments(**given | options)


def trainer(folder: Path, dataset: Any = None, cls: type = Recorder, **options: Any) -> Any:
    names = (
        "groups",
        "policy",
        "bucket",
        "mix_at",
        "where",
        "eval_dataset",
        "compute_loss_func",
        "processing_class",
        "model",
    )
    own: dict[str, Any] = {name: options.pop(name) for name in names if name in options}
    own = dict(model=model(), groups=GROUPS, policy=policies.mixup()) | own
    return cls(args=arguments(folder, **options), train_dataset=dataset if dataset is not None else Texts(), **own)


def state(of: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in of.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("mix_at", ["embeddings", "features"])
def test_batches_and_losses_are_those_of_the_sequence(tmp_path: Path, mix_at: str) -> None:
    run = trainer(tmp_path, mix_at=mix_at, label_smoothing_factor=0.1)
    start = copy.deepcopy(run.model)
    run.train()
    assert len(run.seen) == 7
    drawn = F.draw(GROUPS, policies.mixup(), seed=7, start=0, count=7 * BATCH)
    for k, (inputs, _) in enumerate(run.seen):
        part = slice(k * BATCH, (k + 1) * BATCH)
        assert torch.equal(inputs["index"], drawn.index[part])
        assert torch.equal(inputs["partner"], drawn.partner[part])
        assert torch.equal(inputs["lam"], drawn.lam[part])
        assert inputs["labels"].tolist() == LABELS[inputs["index"]].tolist()
        for ids, mask, rows in (
            (inputs["input_ids"], inputs["attention_mask"], inputs["index"]),
            (inputs["partner_ids"], inputs["partner_mask"], inputs["partner"]),
        ):
            assert [i[m].tolist() for i, m in zip(ids, mask, strict=True)] == [ROWS[n] for n in rows.tolist()]
    # The first loss, before any step, computed by MixedInputs and from the embeddings.
    inputs, loss = run.seen[0]
    pairs = MixLoader(TokenSource.from_lists(ROWS, pad_multiple=1), GROUPS, policies.mixup(), BATCH, seed=7).batch(0)
    logits = MixedInputs(start.train(), mix_at)(pairs.input).logits
    own = F.mixed_cross_entropy(logits, pairs.label, pairs.partner_label, pairs.lam, label_smoothing=0.1)
    assert loss == pytest.approx(float(own.detach()), abs=1e-6)
    if mix_at == "embeddings":
        table, lam = start.get_input_embeddings().weight, inputs["lam"][:, None, None]
        first = table[inputs["input_ids"]] * inputs["attention_mask"][..., None]
        second = table[inputs["partner_ids"]] * inputs["partner_mask"][..., None]
        union = (inputs["attention_mask"] & (lam[..., 0] > 0)) | (inputs["partner_mask"] & (lam[..., 0] < 1))
        logits = start(inputs_embeds=lam * first + (1 - lam) * second, attention_mask=union.long()).logits
        weight = inputs["lam"]
        terms = [
            torch.nn.functional.cross_entropy(logits, inputs[name], reduction="none", label_smoothing=0.1)
            for name in ("labels", "partner_labels")
        ]
        assert loss == pytest.approx(float((weight * terms[0] + (1 - weight) * terms[1]).mean().detach()), abs=1e-5)
    logged = [row["loss"] for row in run.state.log_history if "loss" in row]
    assert logged == pytest.approx([loss for _, loss in run.seen], abs=1e-3)


def test_batches_are_balanced(tmp_path: Path) -> None:
    run = trainer(tmp_path, policy=policies.group_balanced())
    run.train()
    for inputs, _ in run.seen:
        assert torch.bincount(inputs["group"], minlength=4).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_weights_equal_those_of_finetune(tmp_path: Path, accumulate: int) -> None:
    steps = 6 if accumulate == 1 else 10  # an epoch has five batches: the Trainer takes steps of 3 and 2
    run = trainer(tmp_path, gradient_accumulation_steps=accumulate, max_steps=6 if accumulate == 1 else 4)
    start = copy.deepcopy(run.model)
    run.train()
    if accumulate == 1:
        loader = MixLoader(TokenSource.from_lists(ROWS), GROUPS, policies.mixup(), BATCH, seed=7, steps=steps)
        ours = MixedInputs(start)
        result = finetune(
            ours, loader, learning_rate=3e-3, weight_decay=0.01, schedule="linear", warmup=0.0, clip=1.0,
            progress=False,
        )  # fmt: skip
        assert [loss for _, loss in run.seen] == pytest.approx(list(result.losses), abs=2e-5)
        assert_same(state(run.model), state(start), 1e-4)
        return
    # A manual loop, because finetune has no epochs that end an accumulation early.
    assert len(run.seen) == steps
    mixed, optimizer = MixedInputs(start.train()), run_optimizer(start)
    loader = MixLoader(TokenSource.from_lists(ROWS), GROUPS, policies.mixup(), BATCH, seed=7, steps=10)
    for number, batches in enumerate([(0, 1, 2), (3, 4), (5, 6, 7), (8, 9)]):
        for step in batches:
            batch = loader.batch(step)
            loss = F.mixed_cross_entropy(mixed(batch.input).logits, batch.label, batch.partner_label, batch.lam)
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(start.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - number / 4)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(state(run.model), state(start), 1e-4)


def run_optimizer(of: torch.nn.Module) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in of.parameters() if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in of.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=3e-3)


@pytest.mark.parametrize("at", [2, 5, 7])
def test_resumed_run_has_the_same_batches(tmp_path: Path, at: int) -> None:
    options = dict(max_steps=9, save_strategy="steps", save_steps=at)
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    second = trainer(tmp_path / "second", **options)
    second.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{at}"))
    assert [i["index"].tolist() for i, _ in second.seen] == [i["index"].tolist() for i, _ in whole.seen[at:]]
    assert_same(state(second.model), state(whole.model))
    # The saved model is the inner model.
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "whole" / f"checkpoint-{at}")
    assert state(saved).keys() == state(whole.model).keys()


def test_epochs_continue_the_sequence(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=-1, num_train_epochs=2, bucket=5, data_seed=3)
    run.train()
    assert run.state.global_step == len(run.seen) == 2 * STEPS_PER_EPOCH
    drawn = F.draw(GROUPS, policies.mixup(), seed=3, start=0, count=10 * BATCH)
    for epoch in range(2):
        part = slice(epoch * 5 * BATCH, (epoch + 1) * 5 * BATCH)
        made = torch.cat([inputs["index"] for inputs, _ in run.seen[epoch * 5 : epoch * 5 + 5]])
        assert sorted(made.tolist()) == sorted(drawn.index[part].tolist())
    dropped = trainer(tmp_path, max_steps=-1, num_train_epochs=1, dataloader_drop_last=True)
    assert len(dropped.get_train_dataloader()) == 4


def test_datasets_of_every_kind_give_the_same_batches(tmp_path: Path) -> None:
    class Columns:
        """The methods of a `datasets.Dataset` that MixTrainer uses."""

        column_names = ("input_ids", "attention_mask", "label")

        def __len__(self) -> int:
            return N

        def __getitem__(self, name: Any) -> Any:
            assert isinstance(name, str), "columns are read whole"
            key = "labels" if name == "label" else name
            return [Texts()[n][key] for n in range(N)]

    listed = [{"input_ids": row} for row in ROWS]
    expected = next(iter(trainer(tmp_path).get_train_dataloader()))
    for dataset in (
        Texts(padded=False), Columns(), listed, TokenSource.from_lists(ROWS, pad_multiple=1),
        Texts(token_type_ids=torch.zeros(LONGEST + 1, dtype=torch.int64)),
    ):  # fmt: skip
        batch = next(iter(trainer(tmp_path, dataset).get_train_dataloader()))
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_evaluation_equals_that_of_the_trainer(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_dataset=Texts(), max_steps=3)
    run.train()
    plain = Trainer(model=run.model, args=arguments(tmp_path), eval_dataset=Texts())
    assert run.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)
    assert np.allclose(run.predict(Texts()).predictions, plain.predict(Texts()).predictions, atol=1e-6)


def test_model_inside_distributed_data_parallel(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    inputs = next(iter(run.get_train_dataloader()))
    run.compute_loss(run.model, inputs).backward()
    expected = {name: p.grad.clone() for name, p in run.model.named_parameters()}
    run.model.zero_grad(set_to_none=True)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        calls = []
        wrapped = torch.nn.parallel.DistributedDataParallel(run.model)
        hook = wrapped.register_forward_pre_hook(lambda *_: calls.append(1))
        run.compute_loss(wrapped, inputs).backward()
        hook.remove()
    finally:
        torch.distributed.destroy_process_group()
    assert len(calls) == 1  # the wrapper synchronizes gradients
    assert_same({name: p.grad for name, p in run.model.named_parameters()}, expected, 1e-7)
    with pytest.raises(ValueError, match="outer must be a wrapper of the model, Linear does not contain it"):
        run.compute_loss(torch.nn.Linear(1, 1), inputs)


SCRIPT = """
from transformers import Trainer

trainer = Trainer(
    model=model,
    args=args,
    train_dataset=train,
    eval_dataset=train,
)
trainer.train()
metrics = trainer.evaluate()
"""

WITH_SPURMIX = """
from spurmix import GroupIndex, MixTrainer, policies

groups = GroupIndex(labels, attributes)
trainer = MixTrainer(
    model=model,
    args=args,
    train_dataset=train,
    eval_dataset=train,
    groups=groups, policy=policies.balance_attributes(),
)
trainer.train()
metrics = trainer.evaluate()
"""


def test_script_changes_in_at_most_five_lines(tmp_path: Path) -> None:
    changed = [line for line in difflib.ndiff(SCRIPT.splitlines(), WITH_SPURMIX.splitlines()) if line.startswith("+")]
    assert len(changed) <= 5
    for script in (SCRIPT, WITH_SPURMIX):
        names = dict(
            model=model(), args=arguments(tmp_path), train=Texts(), labels=LABELS, attributes=ATTRIBUTES, metrics={}
        )
        exec(script, names)  # the two scripts above
        assert names["metrics"]["eval_loss"] > 0


def test_model_of_model_init(tmp_path: Path) -> None:
    run = Recorder(
        model_init=model, args=arguments(tmp_path, max_steps=2), train_dataset=Texts(), groups=GROUPS,
        policy=policies.erm(),
    )  # fmt: skip
    run.train()
    assert len(run.seen) == 2
    assert any(not torch.equal(a, b) for a, b in zip(run.model.parameters(), model().parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(groups=GroupIndex(LABELS[:40])), ValueError, "train_dataset has 50 examples, the groups have 40"),
        (dict(groups=LABELS), TypeError, "groups must be a GroupIndex"),
        (dict(groups=GroupIndex(1 - LABELS)), ValueError, "train_dataset[0] has label"),
        (dict(policy="erm"), TypeError, "policy must be a MixPolicy"),
        (dict(dataset=[{"text": "a"}] * N), ValueError, "examples must have input_ids"),
        (dict(dataset=["a"] * N), TypeError, "examples must be dicts, got str"),
        (dict(dataset=iter(ROWS)), TypeError, "train_dataset must be a dataset with a length"),
        (dict(dataset=Texts(token_type_ids=torch.ones(LONGEST + 1, dtype=torch.int64))), ValueError, "train_dataset[0]: token_type_ids must be 0"),
        (dict(dataset=[{"input_ids": r, "attention_mask": [1]} for r in ROWS]), ValueError, "train_dataset[0]: attention_mask and input_ids must have the same shape"),
        (dict(dataset=[{"input_ids": r, "attention_mask": [0] * len(r)} for r in ROWS]), ValueError, "text 0 has no tokens"),
        (dict(dataset=TokenSource.from_lists([[VOCAB]] * N)), ValueError, "ids go up to 40, but the model's embedding table has 40 rows"),
        (dict(dataset=TokenSource.from_lists([[1] * 25] * N)), ValueError, "the model has 24 positions; use max_length=24"),
        (dict(bucket=0), ValueError, "bucket must be 1"),
        (dict(mix_at="pooler"), ValueError, "mix_at must be"),
        (dict(compute_loss_func=lambda *a, **k: 0), ValueError, "compute_loss_func is not supported"),
    ],
)  # fmt: skip
def test_bad_input(tmp_path: Path, change: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        trainer(tmp_path, **change)
    assert text in str(caught.value)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[1])
import test_hf_trainer as t
torch.set_num_threads(1)
run = t.trainer(Path(sys.argv[2]), per_device_train_batch_size=t.BATCH // 2, max_steps=4, ddp_backend="gloo")
run.train()
assert run.args.world_size == 2
if run.args.process_index == 0:
    save_file({name: v.contiguous() for name, v in run.model.state_dict().items()}, sys.argv[2] + "/end.safetensors")
torch.distributed.barrier()
torch.distributed.destroy_process_group()  # gloo's threads may hold tensors, and abort if the interpreter ends before them
"""


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        str(tmp_path / "script.py"), str(Path(__file__).parent), str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    run = trainer(tmp_path, max_steps=4)
    run.train()
    assert_same(load_file(tmp_path / "end.safetensors"), state(run.model), 1e-4)


def test_deprecated_name_of_mix_at(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="MixTrainer: where is deprecated, use mix_at"):
        made = trainer(tmp_path, cls=MixTrainer, where="features")
    with pytest.warns(DeprecationWarning, match="MixTrainer: where is deprecated, use mix_at"):
        assert made.where == made.mix_at == "features"


def test_class_labels_of_the_dataset_have_the_numbers_of_the_groups() -> None:
    class Labelled(list):  # type: ignore[type-arg]
        features: ClassVar = {"label": SimpleNamespace(names=["bad", "good"])}

    with pytest.raises(ValueError, match="train_dataset: label: class 'bad' has the number 0, but the groups give it"):
        _token_source(Labelled([{"input_ids": [1]}] * 2), GroupIndex([0, 1], class_names=["good", "bad"]), None, None)  # type: ignore[arg-type]
