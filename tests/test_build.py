"""setup.py: ninja builds a small project in its place, so the tests need a compiler but no torch."""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spurmix import _build_stamp

ROOT = Path(__file__).resolve().parents[1]
MODULE = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "answer.h"
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_host", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__host() {
  PyObject* m = PyModule_Create(&module);
  PyModule_AddIntConstant(m, "answer", answer());
  return m;
}
"""
pytestmark = pytest.mark.skipif(
    shutil.which("c++") is None or not (ROOT / "setup.py").is_file(), reason="needs a compiler and the checkout"
)


def build(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=project, env={**os.environ, "SPURMIX_TORCH": "0", **environment}, capture_output=True, text=True,
    )  # fmt: skip


def objects(project: Path) -> dict[str, int]:
    """Modification times of the object files."""
    return {path.name: path.stat().st_mtime_ns for path in (project / "build").rglob("*.o")}


def answer(project: Path) -> int:
    """The value that the built module returns, in a new interpreter."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    assert (project / "spurmix" / f"_host{suffix}").is_file()
    code = "import sys; sys.path.insert(0, 'spurmix'); import _host; print(_host.answer)"
    return int(subprocess.check_output([sys.executable, "-c", code], cwd=project))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The build files of the checkout, with a `_host` of two small sources and a header that one of them includes."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("spurmix", "kernels/triton", "kernels/cuda", "csrc/host"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("__init__.py", "_version.py", "_build_stamp.py"):
        shutil.copy(ROOT / "spurmix" / name, tmp_path / "spurmix")
    (tmp_path / "csrc/host/answer.h").write_text("int other();\ninline int answer() { return other() + 1; }\n")
    (tmp_path / "csrc/host/module.cpp").write_text(MODULE)
    (tmp_path / "csrc/host/other.cpp").write_text("int other() { return 41; }\n")
    return tmp_path


def test_a_build_compiles_only_what_changed(project: Path) -> None:
    done = build(project)
    assert done.returncode == 0, done.stderr
    first = objects(project)
    assert set(first) == {"module.cpp.o", "other.cpp.o"} and answer(project) == 42
    record = json.loads((project / "spurmix" / "_build.json").read_text())
    assert record == {"_host": _build_stamp.source_hash(project)}

    assert build(project).returncode == 0
    assert objects(project) == first  # nothing changed, nothing is compiled

    time.sleep(0.01)
    (project / "csrc/host/answer.h").write_text("int other();\ninline int answer() { return other() + 2; }\n")
    assert build(project).returncode == 0
    second = objects(project)
    assert second["module.cpp.o"] != first["module.cpp.o"] and second["other.cpp.o"] == first["other.cpp.o"]
    assert answer(project) == 43
    assert (
        json.loads((project / "spurmix" / "_build.json").read_text())
        == {"_host": _build_stamp.source_hash(project)}
        != record
    )


def test_a_compile_error_fails_the_build_and_names_the_file(project: Path) -> None:
    (project / "csrc/host/other.cpp").write_text("int other() { return missing; }\n")
    done = build(project)
    assert done.returncode != 0 and "csrc/host/other.cpp:1" in done.stdout + done.stderr
    assert not (project / "spurmix" / "_build.json").exists()


def test_a_required_cuda_build_without_cuda_is_an_error(project: Path) -> None:
    (project / "torch").mkdir()
    (project / "torch" / "__init__.py").touch()
    done = build(project, SPURMIX_TORCH="1", SPURMIX_CUDA="1", PYTHONPATH=str(project))
    assert done.returncode != 0
    assert "SPURMIX_CUDA=1 requires a CUDA build, but" in done.stderr and "torch is not built for CUDA" in done.stderr
