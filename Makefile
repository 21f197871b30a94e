# Setup, tests, documentation and the demo. Each target works from a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
READY := $(VENV)/.ready
# Tests of one file share its session fixtures; tests/conftest.py decides the order of the files.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup lint docs docs-check screenshots test test-all demo demo-majority demo-round1 bench clean
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

# The first round trains twice, side by side on one core each: with its recipe, and as if all votes counted equally.
demo: export RLHF_FEEDBACK_STORE = $(abspath $(RUNS))/demo-feedback.db
demo: DEMO = recipes/demo
demo: WHERE = --runs-dir $(RUNS)
demo: $(READY)
	mkdir -p $(RUNS)
	$(BIN)/rlhf run pretrain sft sample -r $(DEMO)/recipe.yaml $(WHERE)
	$(BIN)/rlhf annotate import -r $(DEMO)/recipe.yaml $(WHERE)
	$(BIN)/python $(DEMO)/annotators.py -r $(DEMO)/recipe.yaml
	$(BIN)/rlhf annotate qc -r $(DEMO)/recipe.yaml
	test -e $(RUNS)/demo/feedback/v0001/manifest.json || \
	  $(BIN)/rlhf run feedback -r $(DEMO)/recipe.yaml $(WHERE) --set feedback.aggregate=majority
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 demo-majority demo-round1
	$(BIN)/rlhf run sample -r $(DEMO)/round2.yaml $(WHERE)
	$(BIN)/rlhf annotate import -r $(DEMO)/round2.yaml $(WHERE)
	$(BIN)/python $(DEMO)/annotators.py -r $(DEMO)/round2.yaml --without finn
	$(BIN)/rlhf run feedback reward ppo eval export -r $(DEMO)/round2.yaml $(WHERE)
	$(BIN)/python $(DEMO)/summary.py $(WHERE)

demo-majority:
	$(BIN)/rlhf run reward ppo eval -r recipes/demo/majority.yaml --runs-dir $(RUNS) > $(RUNS)/demo-majority.log 2>&1

demo-round1:
	$(BIN)/rlhf run feedback reward ppo eval -r recipes/demo/recipe.yaml --runs-dir $(RUNS)

bench: $(READY)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) .venv-trl-* .mypy_cache .pytest_cache .ruff_cache .coverage site
