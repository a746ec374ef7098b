"""Choice and cache of a kernel's configuration, on a fake GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

from spurmix.kernels import tuned

DEVICE = torch.device("cuda", 0)


class Kernel:
    """Fake kernel that records its launches. A larger BLOCK is faster."""

    __name__ = "kernel"
    cache_key = "source"

    def __init__(self) -> None:
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: self.launched.append((grid, options["BLOCK"]))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    state = SimpleNamespace(capturing=False, name="A GPU", measured=0, fails=None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SPURMIX_AUTOTUNE", raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name=state.name, major=9, minor=0)
    )

    def do_bench(run: Any, **options: Any) -> float:
        if state.fails is not None:
            raise state.fails
        state.measured += 1
        run()
        return 1.0 / state.kernel.launched.pop()[1]

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    return state


def tune(gpu: SimpleNamespace, *keys: tuple[Any, ...]) -> list[int]:
    """BLOCK of each launch of a new process that calls the kernel once for each of `keys`."""
    gpu.kernel, gpu.measured = Kernel(), 0
    kernel = tuned.Tuned(gpu.kernel, [triton.Config({"BLOCK": b}) for b in (64, 256, 128)])
    for key in keys:
        kernel(DEVICE, key, lambda c: (1024 // c["BLOCK"],), 1, 2)
    assert all(grid == (1024 // block,) for grid, block in gpu.kernel.launched)
    return [block for _, block in gpu.kernel.launched]


def test_fastest_configuration_is_cached(gpu: SimpleNamespace) -> None:
    assert tune(gpu, (8, torch.bfloat16), (8, torch.bfloat16), (16, torch.bfloat16)) == [256] * 3
    assert gpu.measured == 6
    assert tune(gpu, (16, torch.bfloat16), (8, torch.bfloat16)) == [256] * 2 and gpu.measured == 0
    gpu.name = "Another GPU"
    assert tune(gpu, (8, torch.bfloat16)) == [256] and gpu.measured == 3


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"8": 3}', '{"8": {"options": {"BLOCK": 7}, "milliseconds": 1.0}}'])
def test_damaged_cache_file_is_replaced(gpu: SimpleNamespace, damage: str) -> None:
    tune(gpu, (8,))
    (file,) = tuned.cache_folder().iterdir()
    file.write_text(damage)
    assert tune(gpu, (8,)) == [256] and gpu.measured == 3
    assert json.loads(file.read_text())["8"]["options"]["BLOCK"] == 256


def test_default_is_used_inside_a_capture_and_without_memory(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.capturing = True
    assert tune(gpu, (8,)) == [64]
    gpu.capturing, gpu.fails = False, torch.OutOfMemoryError("full")
    assert tune(gpu, (8,)) == [64]
    gpu.fails = None
    monkeypatch.setenv("SPURMIX_AUTOTUNE", "0")
    assert tune(gpu, (8,)) == [64] and gpu.measured == 0
    assert not tuned.cache_folder().exists()


def test_cache_folder_may_be_read_only(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert tune(gpu, (8,), (8,)) == [256, 256] and gpu.measured == 3


def test_offline_rejects_the_interpreter() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), tuned.offline(90):
        pass
    with pytest.raises(RuntimeError, match="inside offline"):
        tuned.Tuned(Kernel(), [])(torch.device("meta"), (), lambda c: (1,))
