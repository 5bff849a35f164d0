# Everything a newcomer needs: `make demo` and `make test` set up all by themselves.
# TORCH_INDEX=URL takes torch from another index, such as the one with CPU-only builds on https://pytorch.org.
PYTHON ?= python3.11
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

ifeq ($(shell command -v $(PYTHON) 2>/dev/null),)
PYTHON := python3
endif

.PHONY: demo test lint slow mutants bench wheel docs clean setup

# torch first and by its exact version: where a CPU build of it lies at hand, pip takes that one
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "dlopt needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

setup: $(VENV)/.ready

demo: setup
	$(BIN)/dlopt demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# all of lint is fast but for mypy's first run
lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

mutants: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

bench: $(VENV)-peers/.ready
	failed=0; for file in benchmarks/*.py; do \
		OMP_NUM_THREADS=2 $(VENV)-peers/bin/python $$file || failed=1; \
	done; exit $$failed

# peers need much that nothing else needs, so they get an environment apart; mezo asks for an older transformers than
# the rest of them, and comes without its needs
$(VENV)-peers/.ready: pyproject.toml constraints.txt
	test -x $(VENV)-peers/bin/python || $(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(VENV)-peers/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[lab,llm,peers]'
	$(VENV)-peers/bin/python -m pip install -q --disable-pip-version-check --no-deps mezo
	touch $@

docs: setup
	$(BIN)/python -m docs.generate

wheel: setup
	rm -rf dist
	$(BIN)/python -m build -q
	ls -l dist

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV) $(VENV)-peers
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
