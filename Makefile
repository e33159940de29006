# make test and make demo need Python 3.11 or newer and nothing else: .venv is made when it is missing.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test check

demo: $(INSTALLED)
	$(VENV)/bin/python scripts/demo.py

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=8

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# Older than pyproject.toml means: the dependencies may have changed.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: expected Python 3.11 or newer, got $$($(PYTHON) --version 2>&1 | head -n 1). Add PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: expected $(PYTHON) with the venv module, got none. Install it (Debian: python3-venv)." >&2; exit 1; }
	@echo "Setting up $(VENV); the first time it downloads PyTorch, which takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --editable '.[test]'
	@touch $@
