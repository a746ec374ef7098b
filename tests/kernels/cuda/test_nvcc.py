"""nvcc compiles the CUDA kernels for three GPU generations, without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emulated
import pytest
import triton

GENERATIONS = (80, 90, 100)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on the PATH")
def test_nvcc_compiles_without_spills_and_loads_vectors(tmp_path: Path) -> None:
    """No kernel spills registers or uses the stack, and the loops of uncropped images use 128-bit loads and stores."""
    targets = [f"-gencode=arch=compute_{g},code=sm_{g}" for g in GENERATIONS]

    def compiled(source: Path) -> tuple[Path, str]:
        cubin = tmp_path / f"{source.stem}.fatbin"
        command = ["nvcc", "-std=c++17", "-O3", *targets, "-Xptxas=-v", "-fatbin", str(source), "-o", str(cubin)]
        return cubin, subprocess.run(command, capture_output=True, text=True, check=True).stderr

    files = sorted((emulated.ROOT / "kernels" / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip([f.stem for f in files], pool.map(compiled, files), strict=True))
    for name, (_, report) in results.items():
        entries = re.findall(r"for 'sm_(\d+)'\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores", report, re.S)
        assert {int(g) for g, _, _ in entries} == set(GENERATIONS)
        assert all((stack, spill) == ("0", "0") for _, stack, spill in entries), (name, report)
    # Shared memory, including the column taps of the widest output, fits in the 48 KB that need no opt-in.
    report = results["mix_images"][1]
    used = re.findall(r"for 'sm_\d+'\n.*?PathE(\d).*?, (\d+) bytes smem", report, re.S)
    widest = {"3": 2048, "4": 1024, "5": 2048}  # by path, see choose_path() in mix_images.cu
    assert {path for path, _ in used} == set("0123456")
    assert all(int(static) + 16 * widest.get(path, 0) <= 48 << 10 for path, static in used), used
    tools = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"

    def bodies_of(stem: str) -> dict[str, str]:
        sass = subprocess.run(
            [tools / "cuobjdump", "--dump-sass", results[stem][0]],
            capture_output=True, text=True, check=True, env={"PATH": f"{tools}:/usr/bin:/bin"},
        ).stdout  # fmt: skip
        found = re.finditer(r"Function : (\S+)\n.*?(?=\n\t+Function :|\Z)", sass, re.S)
        return {f"{m[1]} {k}": m[0] for k, m in enumerate(found)}  # each function occurs once per generation

    vectorized = [body for name, body in bodies_of("mix_images").items() if re.search(r"PathE[012]", name)]
    assert len(vectorized) >= 3 * 3 * 2  # paths, formats, mix_images and mix_image_batch
    assert all("LDG.E.128" in body and "STG.E.128" in body for body in vectorized)
    for name, kernels in (
        ("embeddings", r"_kernelI\w*?FormatE\dELi[248]E"),
        ("embeddings_grad", r"rows_kernelI\w*?FormatE\dE[fd]Li[248]E"),
    ):
        vectorized = [body for function, body in bodies_of(name).items() if re.search(kernels, function)]
        assert len(vectorized) >= 3 * 4 and all("LDG.E.128" in body for body in vectorized)
