# The environment .venv is made when it is missing or when its requirements have changed.
#
# To bring your own mirror or a particular torch build, use pip's variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL,
# PIP_FIND_LINKS): every pip call below reads them.

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
REQUIREMENTS := pyproject.toml constraints.txt requirements-aot.txt

# JAX's side alone, in its newest versions, which are for Python 3.12. pyenv's python3.12 runs only where it is chosen,
# so it is looked for behind pyenv too.
PYTHON312 ?= $(shell for p in python3.12 \
  "$$(pyenv prefix "$$(pyenv versions --bare 2>/dev/null | grep '^3\.12' | tail -1)" 2>/dev/null)/bin/python3.12"; \
  do "$$p" -c '' 2>/dev/null && echo "$$p" && break; done)
NEWEST := .venv-jax-newest

GPU := $(wildcard /dev/nvidia[0-9]*)
comma := ,
EXTRAS := torch,jax,hf,demo,dev,peers$(if $(GPU),$(comma)cuda)

# With its CUDA plugin installed but no GPU, JAX warns at every start unless it is told to stay on the CPU.
ifeq ($(GPU),)
export JAX_PLATFORMS ?= cpu
endif

TYPED := $(wildcard liger kernels/liger_triton liger_torch liger_jax benchmarks examples) tests/run.py

.PHONY: help env demo test test-gpu test-jax-newest lint lint-style lint-types lint-imports format build clean distclean

help:
	@echo 'make demo       train a small Llama four ways and compare (build/demo)'
	@echo 'make test       every test that needs no GPU'
	@echo 'make test-gpu   the tests that need one'
	@echo 'make test-jax-newest'
	@echo '                the tests of the JAX frontend with the newest JAX, on Python 3.12, without torch'
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

test-jax-newest: $(NEWEST)/.ready
	$(NEWEST)/bin/python tests/run.py cpu interpreter aot -- \
	  -k '(jax or nnx or linen or flax) and not (vmap_of_gradients and xla) and not every_implementation'

$(NEWEST)/.ready: pyproject.toml constraints-jax-newest.txt
	@test -n '$(PYTHON312)' || { echo 'No python3.12 that runs, on PATH or of pyenv; install one (pyenv install 3.12),' \
	  'or say make test-jax-newest PYTHON312=...' >&2; exit 1; }
	@$(NEWEST)/bin/python -m pip --version >/dev/null 2>&1 || '$(PYTHON312)' -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet -c constraints-jax-newest.txt -e '.[jax]' \
	  hypothesis optax pytest pytest-timeout
	$(NEWEST)/bin/python -m pip install --quiet --no-deps -c constraints-jax-newest.txt jax-cuda13-pjrt jax-cuda13-plugin
	@touch $@

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
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(NEWEST)
