# Two commands on a fresh machine: `make demo` runs the main job, `make test` proves it.
# What each needs: Python 3.11 or newer, a package index. Neither needs a GPU or a model hub.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
JOBS ?= 2

# One thread per test process: the two processes share the machine's cores instead of fighting over them.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -q

.DEFAULT_GOAL := help
.PHONY: help setup demo lint types test test-all format docs browser pictures clean

help:
	@echo "make demo      compress the embedded teacher on spoken commands made here (a few minutes)"
	@echo "make test      lint, types and the fast tests: what continuous integration runs"
	@echo "make test-all  the slow tests as well"
	@echo "make format    let ruff tidy the code"
	@echo "make docs      the documentation site, in site/"
	@echo "make browser   Debian's Chromium, which the report's tests open (they skip without it)"
	@echo "make pictures  draw the pictures of README and docs again (RUN=folder adds a run's curves)"
	@echo "make clean     remove everything made here, the virtual environment too"

setup: $(READY)

# torch comes first, by itself and at its exact version, so that a CPU build which pip already knows of
# (find-links, a local index, a wheel cache) is taken before another package asks for "some torch".
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: sslim needs Python 3.11 or newer, '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true). Name another one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: '$(PYTHON)' cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "Setting up $(VENV) (a few minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq --upgrade -c constraints.txt pip
	@$(PIP) install -qq -c constraints.txt torch==2.13.0
	@$(PIP) install -qq -c constraints.txt --build-constraint constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/sslim demo --force

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

test: lint types
	$(TEST)

test-all: lint types
	$(TEST) -m "slow or not slow"

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

browser:
	@scripts/browser.sh

# The pictures of README and docs; RUN names a compressed folder whose curves and plan are drawn as well.
pictures: $(READY)
	$(BIN)/python docs/pictures.py $(RUN)

clean:
	rm -rf $(VENV) site test-artefacts demo-output build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
