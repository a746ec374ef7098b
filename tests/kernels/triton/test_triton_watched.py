"""watched.py finds the bug of each broken Triton kernel, and none in a valid kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

PROGRAMS = 4  # of four lanes each


@triton.jit
def valid(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at) + tl.load(y + tl.arange(0, BLOCK))  # all programs read the same
    tl.store(out + at, value)
    tl.atomic_add(total + tl.zeros([BLOCK], tl.int32), value)
    tl.store(error_ptr, 1)


@triton.jit
def reads_beyond_the_end(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at + 1))


@triton.jit
def writes_before_the_start(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at - 1, tl.load(x + at))


@triton.jit
def reads_as_another_type(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x.to(tl.pointer_type(tl.int16)) + at)
    tl.store(out + tl.program_id(0) * BLOCK + at, value.to(tl.float32))


@triton.jit
def all_programs_write_one_tile(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at))


@triton.jit
def lanes_write_one_address(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0) * BLOCK + lane // 2, tl.load(x + lane))


@triton.jit
def reads_what_another_program_writes(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    before = tl.load(out + at - BLOCK, mask=at >= BLOCK, other=0)
    tl.store(out + at, tl.load(x + at) + before)


@triton.jit
def writes_what_another_program_reads(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    after = tl.load(out + at + BLOCK, mask=at < 3 * BLOCK, other=0)
    tl.store(out + at, tl.load(x + at) + after)


@triton.jit
def reads_what_it_wrote(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    at = tl.program_id(0) * BLOCK
    tl.store(out + at + lane, tl.load(x + at + lane))
    tl.store(total, tl.load(out + at + BLOCK - 1 - lane))


@triton.jit
def adds_without_atomics(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(total, tl.load(total) + tl.sum(tl.load(x + at), 0))


@triton.jit
def stores_over_atomics(x, y, out, total, error_ptr, BLOCK: tl.constexpr):
    if tl.program_id(0) == 3:
        tl.store(total, 0.0)
    else:
        tl.atomic_add(total, 1.0)


def launch(kernel: Any) -> torch.Tensor:
    # The padding keeps accesses of the broken kernels inside one allocation.
    padded = torch.arange(20.0)
    out, total = torch.zeros(16), torch.zeros(1)
    kernel[(PROGRAMS,)](padded[2:18], torch.ones(4), out, total, torch.zeros(1, dtype=torch.int32), BLOCK=4)
    return torch.cat([out, total])


def test_a_valid_kernel_passes() -> None:
    expected = torch.arange(2.0, 18) + 1
    assert torch.equal(launch(valid), torch.cat([expected, expected.sum()[None]]))


@pytest.mark.parametrize(("kernel", "finding"), [
    (reads_beyond_the_end, r"reads_beyond_the_end, program \(3, 0, 0\): reads 0x\w+ to 0x\w+, outside the arguments of 4 bytes"),
    (writes_before_the_start, r"program \(0, 0, 0\): writes 0x\w+ to 0x\w+, outside the arguments"),
    (reads_as_another_type, "outside the arguments of 2 bytes per element"),
    (all_programs_write_one_tile, r"program \(1, 0, 0\), out: writes to an address that another program writes"),
    (lanes_write_one_address, "out: two lanes write to one address"),
    (reads_what_another_program_writes, r"program \(1, 0, 0\), out: reads an address that another program writes"),
    (writes_what_another_program_reads, r"program \(1, 0, 0\), out: writes to an address that the launch reads"),
    (reads_what_it_wrote, "out: reads an address that the same program writes"),
    (adds_without_atomics, "total: writes to an address that the launch reads"),
    (stores_over_atomics, "total: writes to an address that another program writes"),
])  # fmt: skip
def test_a_broken_kernel_fails(kernel: Any, finding: str) -> None:
    with pytest.raises(Exception, match=finding):
        launch(kernel)
