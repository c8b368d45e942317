# Each target does all its set-up on a fresh machine with Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := uv==0.13.9

# a hundred jobs that each compile what they import would take longer than the work they do
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study smoke test lint docs install-test constraints clean

study: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" snakemake

smoke: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" snakemake --configfile config/smoke.yaml

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" snakefmt --check Snakefile workflow
	PATH="$(abspath $(BIN)):$$PATH" snakemake --lint

# the tables and numbers of README.md, docs/ and config/README.md anew, from the code and from results/reference
docs: $(VENV)/.installed
	$(BIN)/python benchmarks/document_numbers.py

# uv installs in a third of pip's time, but it reads none of pip's settings: a folder of local wheels is passed on, and
# where uv finds no package index, pip tries with all its settings
install = UV_FIND_LINKS="$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null)}" \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable $(1) || \
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable $(1)

install-test: $(VENV)/.installed-test

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile $(UV)
	$(call install,.)
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(call install,'.[test]')
	touch $@

# constraints.txt anew: the newest versions of everything that pyproject.toml needs and does not pin, for
# every platform and Python. The CUDA libraries and Triton are left out: they come with torch's own build.
constraints: $(VENV)/.installed
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate --no-header \
		--output-file .constraints.partial pyproject.toml
	grep -vE '^(triton|nvidia-|cuda-)' .constraints.partial > constraints.txt
	rm .constraints.partial

clean:
	rm -rf $(VENV) results/quick
