# Everything starts here. `make` alone lists the targets.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Seen by every process that Flower starts; see README, "flwr run".
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup run tff test test-all bench lint format clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Written last, so that an interrupted set-up starts again.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	# torch first and pinned: an open range takes a build with gigabytes of CUDA.
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[privacy,secure,tff]'
	# Judge of the robust rules; its own pins (an old torch) are not wanted.
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt byzfl
	@touch $@

setup: $(VENV)/.ready  ## prepare .venv

run: setup  ## run the main job: a real Flower simulation with 10 SuperNodes on digits
	$(BIN)/truststram run --engine flower --nodes 10

tff: setup  ## prepare the compiler of TensorFlow Federated plans (what runs them is in setup)
	# In uv's cache, where `truststram tff compile` finds it.
	$(BIN)/uv sync --quiet --script tff_bridge/compile_plan.py

test: setup lint  ## tests, lint, types and import contracts (<= 8 minutes)
	$(BIN)/python -m pytest

test-all: setup lint  ## the same and the long suites: deployment, fuzzing, failures
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -m "slow or not slow"

lint: setup  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## all benchmarks; results and pictures in benchmarks/results (<= 60 minutes)
	$(BIN)/python -m benchmarks

clean:  ## remove .venv, caches and runs
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
