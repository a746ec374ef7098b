"""Registration: opcheck of every operator, torch.compile, version counters, backends, and operators without a build."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from samples import GROUPS, IMAGES, INDEX, LABELS, LAM, NAMES, PARTNER, SAMPLES, TABLES, call_with_wrong_tensors

from spurmix import policies
from spurmix.ops import backends, schema
from spurmix.ops import functional as F

OPS = torch.ops.spurmix


def test_every_op_has_a_sample() -> None:
    assert {name for name, _ in SAMPLES} == {s.split("(", 1)[0] for s in schema.SCHEMAS}


@pytest.mark.parametrize(("name", "arguments"), SAMPLES, ids=NAMES)
def test_opcheck(name: str, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize(("name", "arguments"), SAMPLES, ids=NAMES)
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_wrong_tensors_are_refused_or_harmless(backend: str, name: str, arguments: tuple[Any, ...]) -> None:
    """Calls that skip the public functions raise an error or do no harm. `watched.py` reports accesses outside a tensor."""
    if backend == "triton":
        launch = pytest.importorskip("spurmix.kernels.launch")
        text = pytest.importorskip("spurmix.kernels.launch_embeddings")
        call_with_wrong_tensors((launch.KERNELS | text.KERNELS)[name], arguments)
    else:
        call_with_wrong_tensors(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole_and_once(compiler: str) -> None:
    tables, labels = TABLES, LABELS
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters
    graphs.clear()
    weight = torch.randn(60, 2, requires_grad=True)

    def step(start: int) -> torch.Tensor:
        batch = F.mix_image_batch(IMAGES, labels, tables, seed=3, start=start, count=8, augment=F.Augment())
        logits = batch.input.flatten(1) @ weight
        return F.mixed_cross_entropy(logits, batch.label, batch.partner_label, batch.lam)

    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    with torch._dynamo.config.patch(error_on_recompile=False):
        losses = []
        for k in range(24):
            weight.grad = None
            loss = compiled(k * 8)
            loss.backward()
            assert weight.grad is not None
            losses.append((loss.detach(), weight.grad.clone()))
    # The first step is specialized to 0, the second one is general. One graph then serves all steps.
    assert graphs["stats"]["unique_graphs"] <= 3
    for k, (loss, grad) in enumerate(losses):
        weight.grad = None
        expected = step(k * 8)
        expected.backward()
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(grad, weight.grad)


def test_out_operators_increment_the_version_counter() -> None:
    out = torch.zeros(3, 4)
    weight = torch.ones(4, requires_grad=True)
    loss = (out * weight).sum()
    F.mix_rows(torch.randn(6, 4), INDEX, PARTNER, LAM, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_pinned_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: Any = (GROUPS, policies.erm())
    monkeypatch.setenv("SPURMIX_BACKEND", "reference")
    cpu = torch.device("cpu")
    assert backends.implementation("draw", "auto", cpu) is backends.implementation("draw", "reference", cpu)
    monkeypatch.setenv("SPURMIX_BACKEND", "tpu")
    with pytest.raises(ValueError, match="SPURMIX_BACKEND must be one of auto, reference, cpu"):
        F.draw(*arguments, seed=0, start=0, count=1)


SCRIPT = """
import warnings, sys
{setup}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, spurmix
    from spurmix import GroupIndex, policies
    out = spurmix.draw(GroupIndex([0, 1, 1]), policies.group_balanced(), seed=1, start=0, count=6)
    assert out.index.tolist()[0::2] == [0, 0, 0]
    assert torch.ops.spurmix.mix_labels(out.index, out.partner, out.lam, 3, torch.float32).shape == (6, 3)
text = " ".join(str(w.message) for w in caught)
assert "pip install -e . --no-build-isolation" in text and {word!r} in text, text
try:
    spurmix.draw(GroupIndex([0]), policies.erm(), seed=1, start=0, count=1, backend="cpu")
except RuntimeError as error:
    assert "pip install" in str(error)
else:
    raise AssertionError("backend='cpu' must not run without a build")
"""


@pytest.mark.parametrize("word", ["missing", "stale"])
def test_without_a_valid_build_the_reference_runs_with_a_warning(word: str) -> None:
    setup = {
        "missing": "import importlib.util as u; f = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n in ('spurmix._C', 'spurmix._host') else f(n, *a)\n"
        "sys.modules['spurmix._host'] = None",
        "stale": "import spurmix._build_stamp as s; s.source_hash = lambda root: 'other'",
    }[word]
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(setup=setup, word=word)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512bf16"])
def test_every_instruction_set_gives_the_same_results(isa: str) -> None:
    script = (
        "import torch, subprocess, sys\nfrom spurmix import _C\nfrom spurmix.ops import functional as F\n"
        "assert _C.isa() == sys.argv[1]\ntorch.manual_seed(0)\n"
        "x = torch.randint(0, 256, (5, 37, 29, 3), dtype=torch.uint8); i = torch.randint(0, 5, (6,)); j = i.flip(0)\n"
        "lam = torch.rand(6); boxes = torch.rand(6, 2, 4) * 30; l = torch.randn(6, 1001)\n"
        "for dtype in (torch.float32, torch.float16, torch.bfloat16):\n"
        "    for cl in (False, True):\n"
        "        for b in (None, boxes):\n"
        "            a = dict(boxes=b, size=(33, 41) if b is not None else None, dtype=dtype, channels_last=cl)\n"
        "            o, r = (F.mix_images(x, i, j, lam, **a, backend=k) for k in ('cpu', 'reference'))\n"
        "            torch.testing.assert_close(o.float(), r.float(), rtol={torch.float32: 2e-6}.get(dtype, 8e-3), atol=1e-5)\n"
        "o, r = (F.mixed_cross_entropy(l, i, j, lam, backend=k) for k in ('cpu', 'reference'))\n"
        "torch.testing.assert_close(o, r)\n"
        "w = [torch.randn(*s).requires_grad_() for s in ((50, 83), (9, 83), (2, 83), (83,), (83,))]\n"
        "a, b = torch.randint(0, 50, (2, 6, 7)); m = torch.rand(6, 7) < 0.7; t = a % 2\n"
        "for dtype in (torch.float32, torch.float16, torch.bfloat16):\n"
        "    v, g = [x.detach().to(dtype).requires_grad_() for x in w], torch.randn(6, 7, 83)\n"
        "    for call, n in ((lambda k: F.mix_embeddings(v[0], a, b, lam, m, backend=k), 1),\n"
        "                    (lambda k: F.mix_bert_embeddings(*v, a, b, lam, m, token_type_ids=t, backend=k), 5)):\n"
        "        o, r = call('cpu'), call('reference')\n"
        "        both = [(o, r), *zip(*(torch.autograd.grad(x, v[:n], g.to(dtype)) for x in (o, r)))]\n"
        "        for x, y in both:\n"
        "            tolerance = {torch.float32: 1e-5}.get(dtype, 8e-3)\n"
        "            torch.testing.assert_close(x.float(), y.float(), rtol=tolerance, atol=tolerance)\n"
    )
    with open("/proc/cpuinfo") as file:
        flags = file.read()
    done = subprocess.run(
        [sys.executable, "-c", script, isa], capture_output=True, text=True, env={**os.environ, "SPURMIX_CPU_ISA": isa}
    )
    needed = {"baseline": "", "avx2": "avx2", "avx512": "avx512vbmi", "avx512bf16": "avx512_bf16"}[isa]
    if needed in flags:
        assert done.returncode == 0, done.stderr
    else:
        assert "this machine supports at most" in done.stderr


def test_unknown_instruction_set() -> None:
    """Calls of compiled kernels raise an error. The reference still works."""
    script = """
import torch
from spurmix import functional as F
a, lam, x = torch.tensor([0, 2]), torch.rand(2), torch.randn(2, 3, requires_grad=True)
F.mix_labels(a, a, lam, 3, backend="reference")
for call in (lambda: F.mix_labels(a, a, lam, 3), lambda: F.mixed_cross_entropy(x, a, a, lam)):
    try:
        call()
    except ValueError as error:
        print(error)
"""
    environment = {**os.environ, "SPURMIX_CPU_ISA": "sse9"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    said = "SPURMIX_CPU_ISA must be baseline, avx2, avx512 or avx512bf16, got 'sse9'\n"
    assert (done.returncode, done.stdout) == (0, 2 * said), done.stderr
    command = [sys.executable, "-m", "spurmix", "info"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"spurmix: {said}")
