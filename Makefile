# SPDX-License-Identifier: GPL-2.0-or-later
# Two commands matter: `make lab` sets everything up and opens the lab; `make test` sets everything up and tests it.
# `make check` is the quick part of `make test`.
# All of Python goes into .venv, beside this file; the files .venv/.* say what has been done already.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is compiled at installation, with the file that says so.
SOURCES_OF_SETUP := pyproject.toml setup.py $(wildcard l4lab/machine/core/* l4lab/kernel/*.py l4lab/kernel/*/*.py \
    l4lab/machine/*.py \
    l4lab/user/l4.py l4lab/user/monitor/*.py)

.PHONY: lab test check campaign bench-compare test-env lint format clean
.DELETE_ON_ERROR:

lab: $(VENV)/.lab
	$(BIN)/l4lab lab

# What CI runs is what you run.
test: lint
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile tests
	$(BIN)/python -m pytest -q --nbval-lax --nbval-current-env --nbval-cell-timeout=300 notebooks

# What a contributor runs while at work: two to three minutes.
check: lint
	$(BIN)/python -m pytest -q --quick --numprocesses auto --dist loadfile tests

# The fuzzers with fresh seeds, on all processors: make campaign MINUTES=60
MINUTES ?= 10
campaign: $(VENV)/.test
	$(BIN)/python -m tests.kernel.campaign --minutes $(MINUTES)

# Measures for some minutes, and names what is worse than in a saved run: l4lab bench --json bench.json saves one.
SAVED ?= bench.json
bench-compare: $(VENV)/.lab
	$(BIN)/l4lab bench --compare $(SAVED)

test-env: $(VENV)/.test

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "l4lab needs Python 3.11 or later; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	tools/system-packages $(PYTHON) lab
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# An editable installation: what you change in l4lab/ is what runs.
$(VENV)/.lab: $(SOURCES_OF_SETUP) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@$(BIN)/python -c 'import l4lab.machine._core' 2>/dev/null \
	    || echo "WARNING: no native core (is there a C compiler, and Python.h?); the lab will run several times slower"
	-$(BIN)/python tools/fetch_viz.py
	@touch $@

$(VENV)/.test: $(SOURCES_OF_SETUP) tools/system-packages | $(BIN)/python
	tools/system-packages $(PYTHON) test
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	-$(BIN)/python tools/fetch_viz.py
	@touch $@ $(VENV)/.lab

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f l4lab__mypyc*.so l4lab/_compiled.json
	find l4lab -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
