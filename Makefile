# Two commands: `make demo` and `make test`. Both set up .venv first, and install again only after
# pyproject.toml, constraints.txt or the native kernels (csrc/) have changed.
#
# Options:
#   PYTHON=python3.12        the interpreter that makes .venv
#   VENV=/tmp/venv           another place for the environment
#   PIP_ARGS="..."           more arguments for pip, for example the CPU-only build of torch on Linux:
#                            PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#   PROMPT="..."             the opening of the demo's story
#   PYTEST_ARGS="-x -k gpt2" arguments for pytest (default: one process for each core, 8 at most)

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PROMPT ?= Once upon a time, in a little house at the edge of the forest,
PYTEST_ARGS ?= -n auto --maxprocesses 8 --dist loadfile

BIN := $(VENV)/bin
# A person sees pip's progress bars; a log gets only what went wrong.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(if $(MAKE_TERMOUT),,-qq) -c constraints.txt $(PIP_ARGS)
# Native kernels are built by the installation.
NATIVE := $(wildcard setup.py csrc/cpu/*)
STAMP := $(VENV)/.installed
STAMP_DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test test-plain lint sanitize clean

help:
	@echo "make demo   set up .venv and stream a story from the bundled model"
	@echo "make test   set up .venv with the development tools, then ruff, mypy and pytest"
	@echo "make test-plain  the same tests in plain PyTorch, without the native kernels"
	@echo "make lint   only ruff and mypy"
	@echo "make sanitize  the native kernels under the sanitizers of addresses, undefined behaviour and threads"
	@echo "make clean  remove build results and caches (not .venv)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	@echo "installing quintet and its dependencies into $(VENV) (once; a minute or two)"
	$(PIP_INSTALL) -e .
	@touch $@

$(STAMP_DEV): pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	@echo "installing quintet and the development tools into $(VENV) (once; a few minutes)"
	$(PIP_INSTALL) -e ".[dev]"
	@touch $(STAMP) $@

demo: export QUINTET_DEMO_PROMPT = $(PROMPT)
demo: $(STAMP)
	@$(BIN)/quintet generate "$$QUINTET_DEMO_PROMPT"

lint: $(STAMP_DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	$(BIN)/pytest $(PYTEST_ARGS)

# As on a machine without a compiler.
test-plain: export QUINTET_NATIVE = 0
test-plain: $(STAMP_DEV)
	$(BIN)/pytest $(PYTEST_ARGS)

# A program of its own with buffers of exact sizes, and the tests of the kernels with a library that is watched.
SANITIZERS := address,undefined
RUNTIMES = $(foreach name,asan stdc++,$(shell $${CXX:-g++} -print-file-name=lib$(name).so))
sanitize: $(STAMP_DEV)
	$(BIN)/python csrc/tests/run.py --sanitize $(SANITIZERS)
	$(BIN)/python csrc/tests/run.py --sanitize thread --threads 4 --cases 100
	$(BIN)/python csrc/tests/run.py --sanitize $(SANITIZERS) --package build/watched
	LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/watched \
	  $(BIN)/pytest -q -p no:cacheprovider tests/kernels tests/fused

clean:
	rm -rf build dist src/*.egg-info src/quintet/kernels/_cpu.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
