# The environment .venv is made when it is missing or when its requirements have changed.
#
# To bring your own mirror or a particular torch build, use pip's variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL,
# PIP_FIND_LINKS): every pip call below reads them.

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
REQUIREMENTS := pyproject.toml constraints.txt requirements-aot.txt

GPU := $(wildcard /dev/nvidia[0-9]*)
comma := ,
EXTRAS := torch,jax,hf,demo,dev$(if $(GPU),$(comma)cuda)

# With its CUDA plugin installed but no GPU, JAX warns at every start unless it is told to stay on the CPU.
ifeq ($(GPU),)
export JAX_PLATFORMS ?= cpu
endif

TYPED := $(wildcard liger kernels/liger_triton liger_torch liger_jax benchmarks examples) tests/run.py

.PHONY: help env demo test test-gpu lint lint-style lint-types lint-imports format build clean distclean

help:
	@echo 'make demo       train a small Llama four ways and compare (build/demo)'
	@echo 'make test       every test that needs no GPU'
	@echo 'make test-gpu   the tests that need one'
	@echo 'make lint       style, types and import rules'
	@echo 'make format     apply the style'
	@echo 'make build      source archive and wheel in dist/'
	@echo 'make clean      remove what was built; distclean: the environment too'

env: $(READY)

# torch comes first and alone: an installation that fails for lack of disk or of a fitting build should do so
# before anything else was fetched, and pip keeps a torch that it finds installed.
$(READY): $(REQUIREMENTS)
	@test -n '$(PYTHON)' || { echo 'No python3.11 or python3 found; say make PYTHON=...' >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt torch
	$(PY) -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	$(PY) -m pip install --quiet --no-deps -r requirements-aot.txt
	@touch $@

demo: $(READY)
	$(PY) -m examples.demo

test: $(READY)
	$(PY) tests/run.py

test-gpu: $(READY)
	$(PY) tests/run.py --gpu

lint: lint-style lint-types lint-imports

lint-style: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

lint-types: $(READY)
	$(VENV)/bin/mypy $(TYPED)

lint-imports: $(READY)
	$(VENV)/bin/lint-imports

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The wheel is built from the source archive in a folder of its own, so that nothing stale under build/ enters it.
build: $(READY)
	rm -rf dist
	$(PY) -P -m build --outdir dist .

clean:
	rm -rf build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
