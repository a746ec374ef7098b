# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SOURCES := $(shell find csrc kernels -type f) setup.py pyproject.toml constraints.txt

.PHONY: demo test lint bench format clean

# torch first and pinned: an unpinned one would bring gigabytes of CUDA packages. No build isolation for the same reason.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch setuptools wheel pybind11
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]' --no-build-isolation
	touch $@

demo: $(STAMP)
	$(BIN)/spurmix demo --out demo-out

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' | xargs $(BIN)/clang-format --dry-run --Werror

bench: $(STAMP)
	$(BIN)/python -m bench --quick

format: $(STAMP)
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build demo-out spurmix/*.so spurmix/_build.json
