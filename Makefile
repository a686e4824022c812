# make demo    environment, then the whole pipeline on the embedded demo; prints the report's path
# make test    environment, then the tests
# make lint    formatters, linters, type checker, the workflow's own checks
#
# The environment is made once, in .venv/, from pyproject.toml and constraints.txt. Another place:
# make VENV=path. On Linux without a GPU, PIP_EXTRA_INDEX_URL set to the CPU index of PyTorch
# spares the download of CUDA.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

.PHONY: demo test lint format env
.DELETE_ON_ERROR:

env: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("vit-atlas needs Python 3.11 or newer; name one: make PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: env
	snakemake $(ARGS)
	@echo "The report is at $(CURDIR)/results/demo/report/index.html"

test: env
	pytest -n 2 --dist loadfile $(ARGS)

lint: env
	ruff check
	ruff format --check
	snakefmt --check Snakefile workflow
	mypy
	.ci/lint-workflow

format: env
	ruff check --fix
	ruff format
	snakefmt Snakefile workflow
