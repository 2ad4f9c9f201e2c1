# Needs Python 3.11 or newer with pip, and nothing else. VENV=path puts the environment elsewhere.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Processes that share the tests; JOBS=0 runs them in one, which a debugger needs.
JOBS ?= 2
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: help demo test check format docs bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s :

demo: $(VENV)/.user ## install, then plan and run a training step on this machine
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev ## run every test and doctest
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

check: $(VENV)/.dev ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev ## build the documentation into site/; a broken link or an undocumented public name fails
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs site
	@echo "site/index.html"

bench: $(VENV)/.dev ## run every benchmark; one that fails does not stop the others
	@code=0; for run in benchmarks/[!_]*.py "benchmarks/never_worse.py --compiled"; do \
	  echo "== $$run"; $(BIN)/python $$run || code=1; done; exit $$code

clean: ## forget the environment and caches
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The stamps are older than pyproject.toml exactly when the installed dependencies may be out of date.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"autopar needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $(VENV)/.user $@
