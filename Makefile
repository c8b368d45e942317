# Each target does all its set-up on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# a hundred jobs that each compile what they import would take longer than the work they do
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study test lint clean

study: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" snakemake

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" snakefmt --check Snakefile workflow
	PATH="$(abspath $(BIN)):$$PATH" snakemake --lint

# --no-compile: half of an installation is compiling modules that nobody imports; the others are at their first use
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) results/quick
