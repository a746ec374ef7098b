"""Fine-tuning: learning, resume, options, losses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_network import FEATURES, GROUPS, network
from torch import nn

from spurmix import MixLoader, evaluate, finetune, models, policies
from spurmix.train.loss_log import read_losses
from spurmix.train.options import FinetuneOptions, FinetuneOverrides
from spurmix.train.schedule import factor


def loader(**options: Any) -> MixLoader:
    arguments: dict[str, Any] = dict(steps=11, seed=2)
    return MixLoader(FEATURES, GROUPS, policies.lisa(), options.pop("batch", 24), **arguments | options)


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(parameters(a), parameters(b), strict=True))


def test_finetune_learns_and_writes_metrics(tmp_path: Path) -> None:
    model = network()
    result = finetune(model, loader(steps=60), learning_rate=3e-2, output=tmp_path)
    assert result.losses[-1] < result.losses[0]
    assert evaluate(model, FEATURES, GROUPS).average > 0.9
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(60))
    assert rows[-1]["loss"] == result.loss


@pytest.mark.parametrize("at", [4, 8])
def test_resume_is_bit_identical(tmp_path: Path, at: int) -> None:
    whole = network()
    options: Any = dict(save_every=4, max_checkpoints=9, accumulate=2, clip=1.0)
    finetune(whole, loader(), output=tmp_path / "a", **options)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b" / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > at:
            shutil.rmtree(path)
    resumed = network()
    torch.manual_seed(99)
    result = finetune(resumed, loader(), output=tmp_path / "b", resume=True, **options)
    assert same(whole, resumed)
    assert len(result.losses) == 11
    assert len((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()) == 11


def test_corrupt_checkpoint_falls_back_with_a_warning(tmp_path: Path) -> None:
    whole = network()
    finetune(whole, loader(), output=tmp_path, save_every=4)
    newest, older = sorted((tmp_path / "checkpoints").iterdir(), reverse=True)
    file = newest / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    resumed = network()
    with pytest.warns(RuntimeWarning, match="is (corrupt|damaged)"):
        finetune(resumed, loader(), output=tmp_path, save_every=4, resume=True)
    assert same(whole, resumed)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "state.json").write_text("{")
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match=r"all checkpoints in .* are corrupt"):
        finetune(network(), loader(), output=tmp_path, resume=True)


def test_checkpoint_of_another_run_is_an_error(tmp_path: Path) -> None:
    finetune(network(), loader(), output=tmp_path)
    with pytest.raises(ValueError, match="another run; different: seed"):
        finetune(network(), loader(seed=3), output=tmp_path, resume=True)
    with pytest.raises(ValueError, match="different: model"):
        finetune(nn.Linear(6, 2), loader(), output=tmp_path, resume=True)


def test_accumulation_equals_the_large_batch() -> None:
    small, large = network(0.0), network(0.0)
    finetune(small, loader(batch=12, steps=8), accumulate=4, optimizer="sgd", learning_rate=0.1)
    finetune(large, loader(batch=48, steps=2), optimizer="sgd", learning_rate=0.1)
    for a, b in zip(parameters(small), parameters(large), strict=True):
        torch.testing.assert_close(a, b)


def test_incomplete_accumulation_is_scaled_by_its_size() -> None:
    tail, plain = network(0.0), network(0.0)
    options: Any = dict(optimizer="sgd", learning_rate=0.1, schedule="constant", momentum=0.0)
    finetune(tail, loader(batch=24, steps=1), accumulate=4, **options)
    finetune(plain, loader(batch=24, steps=1), **options)
    assert same(tail, plain)


def test_freeze_trains_the_head_only() -> None:
    model = models.small_resnet(2, width=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = np.random.default_rng(8).integers(0, 256, (120, 16, 16, 3), dtype=np.uint8)
    finetune(model, MixLoader(images, GROUPS, policies.erm(), 24, steps=3), freeze="backbone")
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith("classifier") for k in changed)


def test_schedules() -> None:
    assert factor("constant", 5, 10, 0) == 1
    assert factor("linear", 5, 10, 0) == 0.5
    assert factor("cosine", 0, 10, 0) == 1
    assert factor("cosine", 5, 10, 0) == pytest.approx(0.5)
    assert [factor("linear", k, 10, 0.2) for k in range(3)] == [0.5, 1, 1]
    cycle = [factor("one_cycle", k, 100, 0) for k in range(100)]
    assert int(np.argmax(cycle)) in (29, 30)
    assert min(cycle) >= 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(schedule="exponential"), "schedule"),
        (dict(optimizer="lamb"), "optimizer"),
        (dict(mixed_precision="fp8"), "mixed_precision"),
        (dict(accumulate=0), "accumulate"),
        (dict(freeze="head"), "freeze"),
        (dict(clip=0.0), "clip"),
        (dict(mixed_precision="fp16"), "fp16 requires a GPU"),
        (dict(resume=True), "output"),
    ],
)
def test_bad_options(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        finetune(network(), loader(), **options)


def test_output_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write into"):
        finetune(network(), loader(), output=tmp_path / "file" / "run")


def test_error_names_the_step_of_a_loss_that_is_not_finite() -> None:
    model = network()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss is nan at step 0"):
        finetune(model, loader())


def test_bf16_trains() -> None:
    assert np.isfinite(finetune(network(), loader(), mixed_precision="bf16").loss)


def test_models_give_logits() -> None:
    assert models.logits_of(models.small_resnet(3)(torch.zeros(2, 3, 32, 32))).shape == (2, 3)
    bert = models.bert(
        2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    assert models.logits_of(bert(torch.zeros(1, 4, dtype=torch.int64))).shape == (1, 2)
    assert 23_000_000 < sum(p.numel() for p in models.resnet50(2).parameters()) < 24_000_000
    with pytest.raises(TypeError, match="logits"):
        models.logits_of("x")
    with pytest.raises(ValueError, match="local folder"):
        models.bert(2, pretrained="nowhere")
    with pytest.raises(ValueError, match="num_classes"):
        models.resnet50(0)


def test_losses_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    for name in ("item", "tolist", "__float__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, original: Any = original) -> Any:
            nonlocal reads
            caller = sys._getframe(1).f_code.co_filename
            reads += caller.endswith(("finetune.py", "loss_log.py", "training_state.py"))
            return original(self)

        monkeypatch.setattr(torch.Tensor, name, counted)
    loader = MixLoader(FEATURES, GROUPS, policies.lisa(), 8, steps=100, seed=1)
    result = finetune(network(), loader)
    assert len(result.losses) == 100
    assert reads <= 100 / 32 + 3


def test_checkpoints_do_not_grow_with_the_number_of_steps(tmp_path: Path) -> None:
    sizes = []
    for steps in (10, 300):
        finetune(network(), loader(steps=steps), output=tmp_path / str(steps))
        [path] = (tmp_path / str(steps) / "checkpoints").iterdir()
        sizes.append(sum(file.stat().st_size for file in path.iterdir()))
    assert abs(sizes[0] - sizes[1]) < 50  # only numbers of steps have more digits


def damage_metrics(file: Path, kind: str) -> set[int]:
    """Damage `metrics.jsonl`. Return the steps whose losses are lost."""
    lines = file.read_text().splitlines()
    if kind == "missing file":
        file.unlink()
        return set(range(8))
    if kind == "truncated":
        lines = [*lines[:5], lines[5][:20]]
    elif kind == "line removed":
        del lines[2]
    elif kind == "line corrupt":
        lines[2] = lines[2].replace('"loss": ', '"loss": "')
    elif kind == "unreadable bytes":
        lines[0] = "\x00\ufffd["
    file.write_text("\n".join(lines))
    return {"truncated": {5, 6, 7}, "unreadable bytes": {0}}.get(kind, {2})


@pytest.mark.parametrize("kind", ["missing file", "truncated", "line removed", "line corrupt", "unreadable bytes"])
def test_damaged_metrics_do_not_change_a_resumed_run(kind: str, tmp_path: Path) -> None:
    whole, resumed = network(), network()
    expected = finetune(whole, loader(), output=tmp_path, save_every=4, max_checkpoints=9).losses
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000011")
    lost = damage_metrics(tmp_path / "metrics.jsonl", kind)
    with pytest.warns(RuntimeWarning, match=rf"metrics.jsonl: {len(lost)} of 8 losses are missing or corrupt"):
        result = finetune(resumed, loader(), output=tmp_path, save_every=4, max_checkpoints=9, resume=True)
    assert same(whole, resumed)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(11))
    for step, loss in enumerate(expected):
        assert np.isnan(result.losses[step]) if step in lost else result.losses[step] == loss
        assert rows[step]["loss"] is None if step in lost else rows[step]["loss"] == loss
    assert read_losses(tmp_path / "metrics.jsonl", 11) == pytest.approx(list(result.losses), rel=0, nan_ok=True)


def test_edited_metrics_are_reported(tmp_path: Path) -> None:
    finetune(network(), loader(), output=tmp_path)
    file = tmp_path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3]["loss"] += 1e-9
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(RuntimeWarning, match=r"metrics.jsonl: losses differ from those of the run"):
        result = finetune(network(), loader(), output=tmp_path, resume=True)
    assert result.losses[3] == rows[3]["loss"]


def test_options_and_single_arguments_agree() -> None:
    overrides = {name: kind.__forward_arg__ for name, kind in FinetuneOverrides.__annotations__.items()}
    assert FinetuneOptions.__annotations__ == overrides
    given = dict(optimizer="sgd", learning_rate=0.05, momentum=0.5, accumulate=2, clip=1.0)
    models = network(0.0), network(0.0), network(0.0)
    finetune(models[0], loader(), options=FinetuneOptions(**given))  # type: ignore[arg-type]
    finetune(models[1], loader(), **given)  # type: ignore[arg-type]
    base = FinetuneOptions(**given | {"learning_rate": 9.0})  # type: ignore[arg-type]
    finetune(models[2], loader(), options=base, learning_rate=0.05)
    assert same(models[0], models[1]) and same(models[0], models[2])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lerning_rate", "did you mean learning_rate?"),
        ("save_evry", "did you mean save_every?"),
        ("xyz", "options are optimizer, learning_rate,"),
    ],
)
def test_unknown_options_are_named(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is not an option of finetune; {re.escape(hint)}"):
        finetune(network(), loader(), **{name: 1})


def test_the_deprecated_name_of_max_checkpoints(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="finetune: keep is deprecated, use max_checkpoints"):
        finetune(network(), loader(), output=tmp_path, save_every=2, keep=3)  # type: ignore[call-arg]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_loss_that_is_not_finite_is_reported_before_a_checkpoint(tmp_path: Path) -> None:
    model, calls = network(), 0

    def spoil(module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return output * torch.nan if calls == 4 else output

    model.register_forward_hook(spoil)
    with pytest.raises(ValueError, match="the loss is nan at step 3"):
        finetune(model, loader(), output=tmp_path, save_every=6)
    assert not (tmp_path / "checkpoints").exists()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
