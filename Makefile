# `make demo` and `make test` work on a fresh machine: they create the environment and build the modules.
PYTHON ?= python3
CUDA_VENV ?= .venv-cuda
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
CPP_FILES := find bench csrc kernels/cuda tests -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh'
SOURCES := $(shell find csrc kernels -type f -not -name '*.pyc') setup.py pyproject.toml constraints.txt

.PHONY: demo test test-kernels lint bench bench-peers format sanitize check-cuda clean

# torch is installed first, and the build is not isolated, because the modules are built against the torch that runs them.
# Without the constraint, pip may install another torch with gigabytes of CUDA packages.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch setuptools wheel pybind11 ninja
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]' --no-build-isolation
	touch $@

demo: $(STAMP)
	$(BIN)/spurmix demo --out demo-out

test: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m 'not slow and not gpu and not kernels'

# The CUDA kernels run on an emulated GPU. All kernels are compiled for GPUs.
test-kernels: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m 'kernels and not slow'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint spurmix bench kernels/triton setup.py
	$(CPP_FILES) | xargs $(BIN)/clang-format --dry-run --Werror

bench: $(STAMP)
	$(BIN)/python -m bench --quick

# The peers have their own environment, because torchvision does not work beside a torch for the CPU. `--no-deps` keeps
# that torch.
bench-peers:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q -c constraints.txt torch numpy setuptools pillow pyyaml huggingface_hub \
		safetensors packaging
	.venv-peers/bin/python -m pip install -q --no-deps -r bench/peers.txt

# Runs the kernels and `_host` under the address and undefined-behavior sanitizers, see tests/sanitize/run.sh.
sanitize: $(STAMP)
	BIN=$(abspath $(BIN)) tests/sanitize/run.sh

# Builds `_cuda` in its own environment with a torch for CUDA (5 GB). Needs nvcc, but no GPU.
check-cuda:
	test -x $(CUDA_VENV)/bin/python || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install -q torch==2.11.0 'setuptools>=77,<82' wheel pybind11 ninja numpy scipy typer rich
	SPURMIX_CUDA=1 $(CUDA_VENV)/bin/python -m pip install -q . --no-build-isolation --no-deps --force-reinstall
	cd tests/cuda && $(abspath $(CUDA_VENV))/bin/python -P check.py

format: $(STAMP)
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .
	$(CPP_FILES) | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build demo-out spurmix/*.so spurmix/_build.json
