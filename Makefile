# `make demo` and `make test` build the environment .venv first if it is missing or out of date.
#
#   make demo                      train on included photographs, evaluate, serve and report, in minutes
#   make demo DATA='my photos'     the same on a folder of images or a pattern of shards
#   make test                      all tests
#   make unit                      tests without Ray, MLflow and HTTP processes
#   make setup                     only .venv; PYTHON=python3.12 chooses the interpreter, FORCE=1 repeats all stages
#   make docs                      the documentation as a site in build/site
#   make lint                      linter, formatter check, types, schemas
#   make format                    fix and format the code
#   make clean                     remove .venv and the caches of the tools; runs, shards and ./swav-demo stay
#
# make changes only a .venv that it made. .venv may be a link to an empty folder on another disk; it is then built there.
# To use an environment of your own (conda, uv, a container), activate it and install the project:
#
#   python -m pip install -c constraints.txt -e .     then: swav demo
#   python -m pip uninstall -y pillow && python -m pip install --no-deps --no-binary pillow-simd -c constraints.txt pillow-simd
#                                                     optional, resizes several times faster; needs a C compiler and headers

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
export PYTHON
export DATA

.PHONY: help setup demo test unit docs lint format clean

help:
	@sed -n '/^# `make/,/^$$/s/^# \{0,1\}//p' Makefile

setup:
	@SWAV_SETUP_FORCE=$(FORCE) bash deploy/setup.sh

demo: setup
	@$(BIN)/swav demo $${DATA:+--data "$$DATA"}

# Three processes, in the order of tests/conftest.py: otherwise files with few long tests come last. The one with Ray mostly
# waits, so the other two fill two cores. One thread each: threads that wait for each other at barriers slow all down.
test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

unit: setup
	@$(BIN)/python -m pytest -m "not stack"

docs: setup
	@$(BIN)/python docs/build.py

# mypy rejects folders without Python files, so they are left out.
TYPED = $(foreach folder,swav_platform services benchmarks deploy,$(if $(shell find $(folder) -name '*.py' -print -quit 2>/dev/null),$(folder)))

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(TYPED)
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml deploy/docker/compose.*.yml
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint deploy/docker/Dockerfile.*; elif [ -n "$$CI" ]; then echo "hadolint is not installed" >&2; exit 1; else echo "hadolint is not installed: Dockerfiles were not linted"; fi

format: setup
	@$(BIN)/ruff check --fix -q .
	@$(BIN)/ruff format -q .

clean:
	@bash deploy/setup.sh clean
	@rm -rf .swav-setup .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
