"""The watch over interpreted Triton kernels (watched.py): what it finds in kernels that are broken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

HERE = 4  # programs, each with four lanes of the vectors below


@triton.jit
def sound(x, y, out, total, flag, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at) + tl.load(y + tl.arange(0, BLOCK))  # what all read
    tl.store(out + at, value)
    tl.atomic_add(total + tl.zeros([BLOCK], tl.int32), value)
    tl.store(flag, 1)


@triton.jit
def reads_behind(x, y, out, total, flag, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at + 1))


@triton.jit
def writes_before(x, y, out, total, flag, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at - 1, tl.load(x + at))


@triton.jit
def reads_as_another_type(x, y, out, total, flag, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x.to(tl.pointer_type(tl.int16)) + at)
    tl.store(out + tl.program_id(0) * BLOCK + at, value.to(tl.float32))


@triton.jit
def all_write_one_tile(x, y, out, total, flag, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at))


@triton.jit
def lanes_write_one_place(x, y, out, total, flag, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0) * BLOCK + lane // 2, tl.load(x + lane))


@triton.jit
def reads_what_another_writes(x, y, out, total, flag, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    before = tl.load(out + at - BLOCK, mask=at >= BLOCK, other=0)
    tl.store(out + at, tl.load(x + at) + before)


@triton.jit
def writes_what_another_reads(x, y, out, total, flag, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    after = tl.load(out + at + BLOCK, mask=at < 3 * BLOCK, other=0)
    tl.store(out + at, tl.load(x + at) + after)


@triton.jit
def reads_what_it_wrote(x, y, out, total, flag, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    at = tl.program_id(0) * BLOCK
    tl.store(out + at + lane, tl.load(x + at + lane))
    tl.store(total, tl.load(out + at + BLOCK - 1 - lane))


@triton.jit
def adds_without_atomics(x, y, out, total, flag, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(total, tl.load(total) + tl.sum(tl.load(x + at), 0))


@triton.jit
def stores_over_atomics(x, y, out, total, flag, BLOCK: tl.constexpr):
    if tl.program_id(0) == 3:
        tl.store(total, 0.0)
    else:
        tl.atomic_add(total, 1.0)


def launch(kernel: Any) -> torch.Tensor:
    room = torch.arange(20.0)
    out, total = torch.zeros(16), torch.zeros(1)
    kernel[(HERE,)](room[2:18], torch.ones(4), out, total, torch.zeros(1, dtype=torch.int32), BLOCK=4)
    return torch.cat([out, total])


def test_a_sound_kernel_passes() -> None:
    expected = torch.arange(2.0, 18) + 1
    assert torch.equal(launch(sound), torch.cat([expected, expected.sum()[None]]))


@pytest.mark.parametrize(("kernel", "finding"), [
    (reads_behind, r"reads_behind, program \(3, 0, 0\): reads 0x\w+ to 0x\w+, outside the arguments of 4 bytes"),
    (writes_before, r"program \(0, 0, 0\): writes 0x\w+ to 0x\w+, outside the arguments"),
    (reads_as_another_type, "outside the arguments of 2 bytes an element"),
    (all_write_one_tile, r"program \(1, 0, 0\), out: writes what another one writes"),
    (lanes_write_one_place, "out: two lanes write one place"),
    (reads_what_another_writes, r"program \(1, 0, 0\), out: reads what another one writes"),
    (writes_what_another_reads, r"program \(1, 0, 0\), out: writes what is read in the same launch"),
    (reads_what_it_wrote, "out: reads what it wrote itself"),
    (adds_without_atomics, "total: writes what is read in the same launch"),
    (stores_over_atomics, "total: writes what another one writes"),
])  # fmt: skip
def test_a_broken_kernel_is_told(kernel: Any, finding: str) -> None:
    with pytest.raises(Exception, match=finding):
        launch(kernel)
