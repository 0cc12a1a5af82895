# `make demo` and `make test` are all that is needed: each builds .venv first when it is missing or out of date.
#
#   make demo                      the whole mission on embedded photographs
#   make demo DATA='my photos'     the same on a folder of images or a pattern of shards
#   make setup PYTHON=python3.12   the environment alone; FORCE=1 goes through all its stages again

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
export PYTHON
export DATA

.PHONY: help setup demo test unit docs lint format clean

help:
	@sed -n '/^# `make/,/^$$/s/^# \{0,1\}//p' Makefile
	@echo "Also: make unit (tests without Ray, MLflow and HTTP processes), make docs (build/site), make lint, make format, make clean"

setup:
	@SWAV_SETUP_FORCE=$(FORCE) bash deploy/setup.sh

demo: setup
	@$(BIN)/swav demo $${DATA:+--data "$$DATA"}

# Two files at a time in the order of tests/conftest.py, else files of few, long tests come last. A thread each, as two
# that wait for each other at barriers cost more than they give.
test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

unit: setup
	@$(BIN)/python -m pytest -m "not stack"

docs: setup
	@$(BIN)/python docs/build.py

# Folders that hold no Python file (yet) are left out: mypy takes that for an error.
TYPED = $(foreach room,swav_platform services benchmarks deploy,$(if $(shell find $(room) -name '*.py' -print -quit 2>/dev/null),$(room)))

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(TYPED)
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml deploy/docker/compose.*.yml
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint deploy/docker/Dockerfile.*; elif [ -n "$$CI" ]; then echo "hadolint is not there" >&2; exit 1; else echo "hadolint is not there: Dockerfiles not linted"; fi

format: setup
	@$(BIN)/ruff check --fix -q .
	@$(BIN)/ruff format -q .

# What the tools leave behind, and the environment. Runs, shards and ./swav-demo are the user's: they stay.
clean:
	@rm -rf .venv .swav-setup .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
