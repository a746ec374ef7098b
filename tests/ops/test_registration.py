"""Registration: opcheck of every operator, torch.compile, version counters, backends, and operators without a build."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from samples import GROUPS, IMAGES, INDEX, LABELS, LAM, NAMES, PARTNER, SAMPLES, TABLES, call_with_wrong_tensors

from spurmix import GroupIndex, policies
from spurmix.core.table_layout import HEADER_WORDS, QUANTILES
from spurmix.ops import backends, schema
from spurmix.ops import functional as F
from spurmix.ops.tables import draw_tables

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


def sharing(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of two tensors that share the first bytes of one storage. The second keeps its values."""
    storage = torch.zeros(max(t.numel() * t.element_size() for t in (first, second)) + 7 & -8, dtype=torch.uint8)
    copies = [storage[: t.numel() * t.element_size()].view(t.dtype).view(t.shape) for t in (first, second)]
    return copies[0], copies[1].copy_(second)


WRITERS = [(n, a) for n, a in SAMPLES if n.endswith("_out") or n == "group_counts"]


@pytest.mark.parametrize(("name", "arguments"), WRITERS, ids=[n for n, _ in WRITERS])
def test_outputs_must_not_share_memory(name: str, arguments: tuple[Any, ...]) -> None:
    schema_arguments = getattr(OPS, name).default._schema.arguments
    outputs = [k for k, a in enumerate(schema_arguments) if a.alias_info is not None and a.alias_info.is_write]
    assert outputs
    for out in outputs:
        for other, value in enumerate(arguments):
            if other == out or not isinstance(value, torch.Tensor) or value.numel() == 0:
                continue
            given = [v.detach().clone() if isinstance(v, torch.Tensor) else v for v in arguments]
            given[out], given[other] = sharing(given[out], value.detach())
            with pytest.raises(RuntimeError, match="must not share memory with"):
                getattr(OPS, name)(*given)


@pytest.mark.parametrize("policy", [policies.mixup(), policies.group_balanced(), policies.erm()], ids=str)
@pytest.mark.parametrize("examples", [6, 400])
def test_altered_tables_are_an_error_or_harmless(policy: Any, examples: int) -> None:
    """Any word of a section may have any value: `draw` raises an error, or draws examples."""
    rng = np.random.default_rng(0)
    groups = GroupIndex(rng.integers(0, 5, examples), rng.integers(0, 5, examples))  # up to 25 groups
    tables = draw_tables(groups, policy)
    quantiles = tables.packed.numel() - QUANTILES
    messages = set()
    for word in rng.permutation(np.arange(HEADER_WORDS, quantiles))[:150]:
        for value in (-1, 0, 2**31, 2**62, -(2**63)):
            packed = tables.packed.clone()
            packed[word] = value
            try:
                drawn = OPS.draw(packed, tables.members, 1, 5, 300)
            except RuntimeError as error:
                messages.add(str(error).split("\n")[0].split(", ")[-1])
            else:
                assert all(int(t.min()) >= 0 and int(t.max()) < examples for t in drawn[:2])
    assert messages == {"spurmix::draw: tables: a section has values that draw tables cannot have"}


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
        "for dtype in (torch.float32, torch.bfloat16):  # an infinite logit\n"
        "    for classes in (3, 40):\n"
        "        x = torch.zeros(20, classes, dtype=dtype); x[3, 0] = torch.inf\n"
        "        for leaf in (False, True):\n"
        "            y = F.mixed_cross_entropy(x.clone().requires_grad_(leaf), torch.full((20,), 2), reduction='none')\n"
        "            assert y[3] == torch.inf and y.isfinite().sum() == 19, (dtype, classes, y)\n"
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
import sys
from spurmix.cli.app import main
sys.argv = ["spurmix", "info"]
sys.exit(main())
"""
    environment = {**os.environ, "SPURMIX_CPU_ISA": "sse9"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    said = "SPURMIX_CPU_ISA must be baseline, avx2, avx512 or avx512bf16, got 'sse9'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, 2 * said, f"spurmix: {said}")
