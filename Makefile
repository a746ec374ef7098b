# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
CUDA_VENV ?= .venv-cuda
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
CPP_FILES := find csrc kernels/cuda tests -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh'
SOURCES := $(shell find csrc kernels -type f) setup.py pyproject.toml constraints.txt

.PHONY: demo test lint bench bench-peers format sanitize check-cuda clean

# torch first and pinned, and no build isolation: the extensions are built against the torch that will run them, and another
# version, in this environment or one for the build, may bring gigabytes of CUDA packages.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch setuptools wheel pybind11
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]' --no-build-isolation
	touch $@

demo: $(STAMP)
	$(BIN)/spurmix demo --out demo-out

test: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m 'not slow and not gpu'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint spurmix bench kernels/triton setup.py
	$(CPP_FILES) | xargs $(BIN)/clang-format --dry-run --Werror

bench: $(STAMP)
	$(BIN)/python -m bench --quick

# Peers live apart: torchvision beside a CPU torch breaks what imports it. They keep the torch that is there.
bench-peers:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q -c constraints.txt torch numpy setuptools pillow pyyaml huggingface_hub \
		safetensors packaging
	.venv-peers/bin/python -m pip install -q --no-deps -r bench/peers.txt

# Kernels without torch, under the address and undefined-behaviour sanitizers: a driver's made-up inputs with every
# instruction set the machine has, then the tests of _host, then those of the emulated CUDA kernels (compiled before: a
# compiler does not run with the sanitizers' libraries loaded). Leaks of Python itself are not looked for.
SANITIZE := build/sanitize
SANITIZE_FLAGS := -std=c++17 -O1 -g -Wall -pthread -fno-omit-frame-pointer -fsanitize=address,undefined \
	-fno-sanitize-recover=all -Wno-maybe-uninitialized -Wno-uninitialized
SANITIZE_CASES ?= 5000
SANITIZE_SEED ?= 1
SANITIZED := tests/sanitize/driver.cpp csrc/host/group_cells.cpp csrc/host/tokens.cpp $(wildcard csrc/cpu/*.cpp)
HEADERS := $(shell find csrc tests/sanitize -name '*.h' -o -name '*.inc')

$(SANITIZE)/%.o: %.cpp $(HEADERS)
	mkdir -p $(@D)
	$(CXX) $(SANITIZE_FLAGS) -fPIC -c $< -o $@

$(SANITIZE)/driver: $(SANITIZED:%.cpp=$(SANITIZE)/%.o)
	$(CXX) $(SANITIZE_FLAGS) $^ -o $@

HOST_OBJECTS := $(patsubst %,$(SANITIZE)/csrc/host/%.o,crc32 group_cells pixels read_rows tokens)
$(SANITIZE)/_host.so: csrc/host/module.cpp $(HOST_OBJECTS) $(HEADERS) $(STAMP)
	$(CXX) $(SANITIZE_FLAGS) -fPIC -shared -fvisibility=hidden \
		$$($(BIN)/python -m pybind11 --includes) csrc/host/module.cpp $(HOST_OBJECTS) -o $@

sanitize:
	$(MAKE) -j2 $(SANITIZE)/driver $(SANITIZE)/_host.so
	set -e; for isa in baseline avx2 avx512 avx512bf16; do \
		SPURMIX_CPU_ISA=$$isa $(SANITIZE)/driver $(SANITIZE_CASES) $(SANITIZE_SEED); \
	done
	rm -rf $(SANITIZE)/python
	mkdir -p $(SANITIZE)/python
	cp -r spurmix $(SANITIZE)/python
	rm -f $(SANITIZE)/python/spurmix/*.so  # the tests are for _host alone
	cp $(SANITIZE)/_host.so $(SANITIZE)/python/spurmix/
	export PYTHONPATH=$(SANITIZE)/python ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)"; \
	$(BIN)/python -P -c 'from spurmix import _host; assert "$(SANITIZE)" in _host.__file__, _host.__file__' && \
	$(BIN)/python -P -m pytest -p no:cacheprovider tests/core/test_groups.py tests/data/pack/test_direct_writer.py
	export EMULATED_SANITIZERS=address,undefined ASAN_OPTIONS=detect_leaks=0 OMP_WAIT_POLICY=passive; \
	PYTHONPATH=tests/ops $(BIN)/python -c 'import emulated; emulated.compile_module(emulated.FOLDER)' && \
	LD_PRELOAD="$$(for l in asan ubsan stdc++; do $(CXX) -print-file-name=lib$$l.so; done | xargs)" \
	$(BIN)/python -m pytest -p no:cacheprovider -k 'not nvcc and not devices_that' tests/ops/test_cuda.py tests/ops/test_cuda_text.py

# `_cuda`, built beside a torch for CUDA (some 5 GB in an environment of its own); needs nvcc, but no GPU.
check-cuda:
	test -x $(CUDA_VENV)/bin/python || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install -q torch==2.11.0 'setuptools>=77,<82' wheel pybind11 numpy scipy typer rich
	SPURMIX_CUDA=1 $(CUDA_VENV)/bin/python -m pip install -q . --no-build-isolation --no-deps --force-reinstall
	cd tests/cuda && $(abspath $(CUDA_VENV))/bin/python -P check.py

format: $(STAMP)
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .
	$(CPP_FILES) | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build demo-out spurmix/*.so spurmix/_build.json
