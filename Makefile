# Setup, tests, documentation and the demo. Each target works from a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
READY := $(VENV)/.ready
# Tests of one file share its session fixtures; tests/conftest.py decides the order of the files.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup lint docs docs-check screenshots test test-all demo bench clean
.DEFAULT_GOAL := help

help:
	@echo "make setup     create the virtual environment $(VENV) with pinned packages"
	@echo "make demo      run the whole pipeline on a small synthetic dataset in a few minutes on two cores"
	@echo "make test      run formatter, linter, types, documentation and the fast tests"
	@echo "make test-all  run everything, slow tests included, and report coverage"
	@echo "make lint      run formatter, linter and types"
	@echo "make docs      regenerate the reference pages and build the documentation into site/"
	@echo "make screenshots  take the pictures of docs/annotation.md with chromium"
	@echo "make bench     run the benchmarks against other tools and print a table"
	@echo "make clean     remove the virtual environment and caches; runs are kept"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV); this takes about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs-check: $(READY)
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

screenshots: $(READY)
	$(BIN)/python docs/screenshots.py

test: lint docs-check
	$(PYTEST) -m "not slow"

test-all: lint docs-check
	$(PYTEST) --cov --cov-report=term:skip-covered --durations=20

demo: $(READY)
	$(BIN)/rlhf run -r recipes/demo/recipe.yaml --runs-dir $(RUNS)

bench: $(READY)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) .venv-trl-* .mypy_cache .pytest_cache .ruff_cache .coverage site
