"""Step `roofline`: every operator compared with the copy bandwidth of the device and with other code."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nn
from torch import Tensor

from bench.gpu import data
from bench.gpu.clock import Clock, compare
from bench.gpu.record import device, dry, emit, gpu_backends, installed, survived
from bench.registry import Contender
from bench.row import Row
from spurmix.ops import functional as F
from spurmix.ops.backends import implementation
from spurmix.ops.reference import draw as reference_draw

STEP = "roofline"


def _copy(case: str, name: str, moved: int) -> Row:
    """Measure a copy on the device that reads and writes `moved` bytes in total."""
    source, target = (torch.zeros(moved // 2, dtype=torch.int8, device=device()) for _ in range(2))
    low, middle, high = Clock().in_turns({"copy": lambda: target.copy_(source)}, 31)["copy"]
    return Row(case, name, "limit", middle, low, high, step=STEP, moved_bytes=moved)


def copy_bandwidth() -> float:
    """Return the bandwidth of a copy of 1 GiB on the device, in bytes read and written per second."""
    row = _copy("copy", "1 GiB on the device", 2 << (16 if dry() else 30))
    assert row.median_ms is not None and row.moved_bytes is not None
    bandwidth = row.moved_bytes / (row.median_ms * 1e-3)
    row.note = f"{bandwidth / 1e12:.3f} TB/s"
    emit(row)
    return bandwidth


def same_copy(case: str, moved: int, bandwidth: float) -> None:
    """Emit a row for a copy of as many bytes as a case. Its share shows the cost of the start and end of a kernel."""
    row = _copy(case, "copy of as many bytes", moved)
    assert row.median_ms is not None
    row.share = moved / (row.median_ms * 1e-3) / bandwidth
    emit(row)


def _fused(pictures: data.Pictures, augment: F.Augment | None, out: list[Tensor], backend: str) -> Contender:
    """Return the fused operator of a backend."""
    mix, fixed = implementation("mix_image_batch_out", backend, device()), pictures.fixed(augment)

    def run() -> Tensor:
        mix(*fixed, 0, None, *out)
        return out[0]

    return Contender(f"spurmix {backend}", run, "ours")


def batches(name: str, batch: int, dtype: torch.dtype, last: bool, bandwidth: float) -> None:
    """Measure drawing, mixing, normalizing and labeling one batch of images, without crops."""
    side = 12 if dry() else 224
    pictures = data.Pictures(40 if dry() else 4096, side, 4 if dry() else batch)
    out = pictures.out(side, dtype, last)

    index, partner, lam = pictures.drawn
    arguments = (pictures.images, index, partner, lam)
    contenders = [_fused(pictures, None, out, backend) for backend in gpu_backends()]
    contenders += [
        Contender("eager", lambda: data.eager(*arguments, dtype, last), note="mixing only"),
        Contender("eager, lean", lambda: data.lean(*arguments, dtype, last), note="mixing only"),
    ]
    if not dry() and dtype == torch.bfloat16 and batch == 256:  # compiling takes long
        planes = pictures.images.permute(0, 3, 1, 2).contiguous()
        theirs = torch.empty_like(out[0])
        norm = data.constants()
        compiled = torch.compile(data.compilable, dynamic=False, mode="max-autotune-no-cudagraphs")
        compiled_planes = torch.compile(data.compilable_planes, dynamic=False, mode="max-autotune-no-cudagraphs")
        contenders += [
            Contender("torch.compile, same store", lambda: compiled(*arguments, *norm, theirs), note="mixing only"),
            Contender("torch.compile, NCHW store", lambda: compiled_planes(planes, *arguments[1:], *norm, theirs),
                      note="mixing only"),
        ]  # fmt: skip
    if dtype == torch.bfloat16 and batch == 256:
        contenders += libraries(pictures)
    moved = out[0].numel() * (2 + dtype.itemsize)
    same_copy(name, moved, bandwidth)
    compare(
        STEP, name, contenders, moved=moved, bandwidth=bandwidth, tolerance=5e-2 if dtype != torch.float32 else 1e-4
    )


def libraries(pictures: data.Pictures) -> list[Contender]:
    """Return the installed libraries, which draw their own lam, and partners within the batch."""
    found = installed("torchvision", "timm", "kornia")
    batch = pictures.images[pictures.drawn.index].permute(0, 3, 1, 2)
    labels = pictures.labels[pictures.drawn.index]
    mean, std = data.constants()
    images = ((batch.float() / 255 - mean[:, None, None]) / std[:, None, None]).to(torch.bfloat16)
    note, contenders = "mixes a normalized batch; draws its own lam", []
    if "torchvision" in found:
        from torchvision.transforms import v2

        mixup = v2.MixUp(num_classes=2)
        contenders.append(Contender("torchvision v2.MixUp", lambda: _none(mixup(images, labels)), note=note))
    if "timm" in found:
        from timm.data import Mixup

        timm = Mixup(num_classes=2)
        contenders.append(Contender("timm Mixup", lambda: _none(timm(images.clone(), labels)), note=note))
    if "kornia" in found:
        from kornia.augmentation import RandomMixUpV2

        kornia = RandomMixUpV2(data_keys=["input", "class"])
        contenders.append(Contender("kornia RandomMixUpV2", lambda: _none(kornia(images.float(), labels)), note=note))
    for name in {"torchvision", "timm", "kornia"} - found.keys():
        emit(Row("images_256_bf16_last", name, "peer", step=STEP, note="absent"))
    return contenders


def _none(value: object) -> None:
    """Drop a result that cannot be compared, because the library draws its own lam."""


def crops(bandwidth: float) -> None:
    """Measure drawing, mixing, normalizing and labeling with random resized crops and flips, from 256 to 224 pixels."""
    stored, side, batch = (20, 12, 3) if dry() else (256, 224, 256)
    pictures = data.Pictures(40 if dry() else 4096, stored, batch)
    augment = F.Augment(size=side)
    out, theirs = (pictures.out(side, torch.bfloat16, True) for _ in range(2))
    packed = pictures.tables.packed
    n = reference_draw.sample_numbers(packed, 0, batch, None)
    boxes = reference_draw.crop_boxes(n, 0, stored, stored, augment.scale, augment.ratio)
    bits = reference_draw.draw_samples(packed, pictures.tables.members, 0, 0, batch, None).flip_bits
    flips = reference_draw.flip_flags(bits).to(torch.uint8)

    contenders = [_fused(pictures, augment, out, backend) for backend in gpu_backends()]
    arguments = (pictures.images, *pictures.drawn, boxes, flips, *data.constants(), theirs[0])
    contenders.append(Contender("eager gathers", lambda: data.sampled_crops(*arguments), note="mixing only"))
    if not dry():
        compiled = torch.compile(data.sampled_crops, dynamic=False)
        contenders.append(Contender("torch.compile of gathers", lambda: compiled(*arguments), note="mixing only"))
    read = float((boxes[..., 2] * boxes[..., 3]).sum()) * 3
    moved = int(read) + out[0].numel() * 2
    same_copy("crops_256_bf16_last", moved, bandwidth)
    compare(STEP, "crops_256_bf16_last", contenders, moved=moved, bandwidth=bandwidth, tolerance=0.15, turns=31)


def losses(batch: int, classes: int, dtype: torch.dtype, bandwidth: float) -> None:
    """Measure forward and backward pass of the mixed cross entropy."""
    case = f"loss_{batch}_{classes}_{str(dtype)[6:]}"
    batch, classes = (4, 50) if dry() else (batch, classes)
    logits = torch.randn(batch, classes, device=device(), dtype=dtype, requires_grad=True)
    label, partner = torch.randint(0, classes, (2, batch), device=device())
    lam = torch.rand(batch, device=device())

    def dense(x: Tensor) -> Tensor:
        weight = lam[:, None]
        return nn.cross_entropy(
            x.float(), weight * nn.one_hot(label, classes) + (1 - weight) * nn.one_hot(partner, classes)
        )

    def two(x: Tensor) -> Tensor:
        losses = [nn.cross_entropy(x.float(), y, reduction="none") for y in (label, partner)]
        return (lam * losses[0] + (1 - lam) * losses[1]).mean()

    def stepping(loss: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            logits.grad = None
            loss(logits).backward()
            assert logits.grad is not None
            return logits.grad

        return step

    forms: list[tuple[str, str, Callable[[Tensor], Tensor]]] = [
        (f"spurmix {b}", "ours", lambda x, b=b: F.mixed_cross_entropy(x, label, partner, lam, backend=b))  # type: ignore[misc]
        for b in gpu_backends()
    ]
    forms += [("dense soft targets", "peer", dense), ("two index losses", "peer", two)]
    if not dry() and (classes == 1000) == (dtype == torch.float32):
        forms += [("torch.compile, dense", "peer", torch.compile(dense, dynamic=False)),
                  ("torch.compile, two losses", "peer", torch.compile(two, dynamic=False))]  # fmt: skip
    contenders = [Contender(name, stepping(loss), kind) for name, kind, loss in forms]
    tolerance = (2e-5 if dtype == torch.float32 else 8e-3) / batch
    moved = 3 * batch * classes * dtype.itemsize
    compare(STEP, case, contenders, moved=moved, bandwidth=bandwidth, tolerance=tolerance, memory=True, turns=31)


SmallCase = tuple[int, Callable[[str], Callable[[], object]], str, Callable[[], object]]
"""Bytes moved, the operator by backend, the name of the peer, and the peer."""


def _row_cases(rows_count: int, columns: int, batch: int, classes: int, draws: int) -> dict[str, SmallCase]:
    """Return the cases of drawing, feature rows, dense targets and counts."""
    pictures = data.Pictures(max(rows_count, 64), 1, batch)
    table = torch.randn(rows_count, columns, device=device())
    index, partner = torch.randint(0, rows_count, (2, batch), device=device())
    label, partner_label = torch.randint(0, classes, (2, batch), device=device())
    lam = torch.rand(batch, device=device())
    weight = lam[:, None]
    logits = torch.randn(batch, classes, device=device())
    group = torch.randint(0, 4, (batch,), device=device())
    counts = torch.zeros(4, 2, dtype=torch.int64, device=device())

    def dense() -> Tensor:
        return weight * nn.one_hot(label, classes) + (1 - weight) * nn.one_hot(partner_label, classes)

    def counted() -> Tensor:
        correct = (logits.argmax(1) == label).long()
        hits = torch.bincount(group, correct.double(), minlength=4).long()
        return torch.stack([hits, torch.bincount(group, minlength=4)], 1)

    def drawn(backend: str) -> Tensor:
        return F.draw(pictures.tables, seed=1, start=0, count=draws, backend=backend).index

    return {
        "draw_1e6": (draws * 28, lambda b: lambda: drawn(b), "reference", lambda: drawn("reference")),
        "rows_8192_2048": (
            3 * batch * columns * 4, lambda b: lambda: F.mix_rows(table, index, partner, lam, backend=b),
            "eager", lambda: weight * table[index] + (1 - weight) * table[partner],
        ),
        "labels_8192_1000": (
            batch * classes * 4, lambda b: lambda: F.mix_labels(label, partner_label, lam, classes, backend=b),
            "eager", dense,
        ),
        "counts_8192_1000": (
            batch * classes * 4, lambda b: lambda: F.group_counts(logits, label, group, out=counts.zero_(), backend=b),
            "eager", counted,
        ),
    }  # fmt: skip


def _embedding_cases(batch: int, length: int, words: int) -> dict[str, SmallCase]:
    """Return the cases of mixed token embeddings, forward only and with the gradient."""
    table = torch.randn(words, 768, device=device(), dtype=torch.bfloat16, requires_grad=True)
    ids, partner_ids = torch.randint(0, words, (2, batch, length), device=device())
    lam = torch.rand(batch, device=device())

    def mixed(backend: str) -> Tensor:
        return F.mix_embeddings(table, ids, partner_ids, lam, backend=backend)

    def eager() -> Tensor:
        weight = lam[:, None, None]
        first, second = (nn.embedding(k, table).float() for k in (ids, partner_ids))
        return (weight * first + (1 - weight) * second).to(torch.bfloat16)

    def gradient(make: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            table.grad = None
            make().sum().backward()
            assert table.grad is not None
            return table.grad

        return step

    return {
        "embeddings_64_128": (
            ids.numel() * 768 * 2 * 3, lambda b: lambda: mixed(b).detach(), "eager", lambda: eager().detach()
        ),
        "embeddings_64_128_grad": (
            (ids.numel() * 6 + words) * 768 * 2, lambda b: gradient(lambda: mixed(b)), "eager", gradient(eager)
        ),
    }  # fmt: skip


def small_ops(bandwidth: float) -> None:
    """Measure drawing, feature rows, token embeddings, dense targets and counts."""
    sizes = (50, 16, 8, 20, 40) if dry() else (65536, 2048, 8192, 1000, 10**6)
    cases = _row_cases(*sizes) | _embedding_cases(*(8, 4, 50) if dry() else (64, 128, 30522))
    for name, (moved, make, peer, run) in cases.items():
        with survived(STEP, name):
            contenders = [Contender(f"spurmix {b}", make(b), "ours") for b in gpu_backends()]
            contenders.append(Contender(peer, run))
            tolerance = 5e-2 if name.startswith("embeddings") else 1e-4
            compare(STEP, name, contenders, moved=moved, bandwidth=bandwidth, tolerance=tolerance, turns=31)


def main() -> None:
    """Run the step."""
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    bf16, f32 = torch.bfloat16, torch.float32
    # The most important cases run first, because the step may reach its time limit.
    kinds = {
        "images_256_bf16_last": (256, bf16, True), "images_32_bf16_last": (32, bf16, True),
        "images_256_fp16_last": (256, torch.float16, True), "images_256_fp32_planes": (256, f32, False),
    }  # fmt: skip
    first, *others = kinds
    with survived(STEP, first):
        batches(first, *kinds[first], bandwidth)
    with survived(STEP, "crops_256_bf16_last"):
        crops(bandwidth)
    for batch, classes, dtype in ((8192, 1000, f32), (256, 128256, bf16), (8192, 1000, bf16), (256, 128256, f32)):
        with survived(STEP, f"loss_{batch}_{classes}"):
            losses(batch, classes, dtype, bandwidth)
    for name in others:
        with survived(STEP, name):
            batches(name, *kinds[name], bandwidth)
    small_ops(bandwidth)
    F.check(device())


if __name__ == "__main__":
    main()
