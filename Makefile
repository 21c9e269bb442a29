# make train      environment, installation, and a first network on the embedded digits
# make test       the tests of some minutes: all without Ray; recovery, resumption, a search on Ray
# make test-all   these and the others: killed processes, several nodes, jobs, a browser
# make lint       formatting, lint rules, types
# make docs       the documentation as a site, in site/
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)
FIRST = smoke or not (ray or slow)

.PHONY: train test test-all lint docs clean

train: $(VENV)/installed
	$(BIN)/python -m rayff.train --arch tinycnn --task digits --stages 2

test: $(VENV)/installed-dev
	$(PYTEST) -n logical -m "$(FIRST)"

test-all: test
	$(PYTEST) -n 2 -m "not ($(FIRST))"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rayff needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
