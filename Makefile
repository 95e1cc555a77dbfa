# Everything a developer runs; `make` alone lists it.

PYTHON ?= python3
VENV ?= .venv
# Tests that run at once, on one thread each; every one holds about a gigabyte.
JOBS ?= 2

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow format docs clean

help:  ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## Make a small GPT-2 2:4 sparse for ONNX Runtime, and print what became of it
	$(BIN)/compress export tiny-gpt2 --sparsity 2:4 --backend onnxruntime --output compressed/tiny-gpt2 --overwrite

test: $(INSTALLED)  ## Lint, check formatting and types, run the tests (minutes)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal --durations 25

test-slow: $(INSTALLED)  ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m slow

format: $(INSTALLED)  ## Format the code and fix what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## Build the documentation as a site, into build/site
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## Remove the virtual environment and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

# Made once, and again when a dependency changes.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
