# Set-up, tests and the demo, each from nothing: `make demo` on a fresh machine is one command.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
READY := $(VENV)/.ready

.PHONY: help setup test lint demo bench clean
.DEFAULT_GOAL := help

help:
	@echo "make setup   virtual environment in $(VENV), with pinned packages"
	@echo "make demo    the whole chain on the embedded world: a few minutes on two cores"
	@echo "make test    formatter, linter, types and tests"
	@echo "make bench   timings beside other tools; prints a table"
	@echo "make clean   remove the virtual environment and caches (runs stay)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV): takes about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist loadfile  # a file to a process: what it makes once, it makes once

demo: $(READY)
	$(BIN)/rlhf run -r recipes/demo/recipe.yaml --runs-dir $(RUNS)

bench: $(READY)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) .venv-trl-* .mypy_cache .pytest_cache .ruff_cache
