# depthlens. Each target that needs .venv makes it, or installs into it what pyproject.toml asks for, only when it must.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# processes that test; each takes a core and up to 4 GiB of memory
WORKERS ?= 2
INSTALLED := $(VENV)/.depthlens-installed
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope
# with what tests need beside it: Ray, quantisers, linters
INSTALLED_DEV := $(VENV)/.depthlens-dev-installed
# what `make check` tests: the packages that need no model, and only their quick tests
QUICK := $(wildcard tests/unit/test_*.py) tests/unit/analysis tests/unit/claims tests/unit/tasks tests/unit/runner
IN_RANGE := import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))

.PHONY: demo test test-all check lab labtest docs badges wheel lint clean help

help:  ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

demo: $(INSTALLED)  ## run four notebooks on the embedded model; runs/demo/index.html shows findings as they come
	$(BIN)/depthlens run 11_one_prompt 00_tour 01_protocols 09_claims --profile demo --out runs/demo

test: lint  ## lint and types, then the tests
	$(PYTEST) tests -m "not nightly" --durations 30

test-all: lint  ## all tests, nightly ones too, with the types of every call checked: an hour
	$(PYTEST) tests --durations 30 --jaxtyping-packages=depthlens,beartype.beartype

check: lint  ## lint and types, then the quick tests: a minute and a half
	$(PYTEST) $(QUICK) -m "not nightly and not slow"

# the folder at the left is the checkout, so that tasks in data are seen, too
lab: $(INSTALLED)  ## open the tour in JupyterLab, beside the other notebooks
	$(BIN)/python -m jupyterlab --ServerApp.root_dir=. notebooks/00_tour.ipynb

labtest: $(INSTALLED_DEV)  ## run a notebook in a real JupyterLab in Chromium or Chrome; screenshots in build/labtest
	$(BIN)/python tests/browser/views.py
	$(BIN)/python tests/browser/lab.py $(if $(CHROME),--browser $(CHROME))

# `make docs RUN=FOLDER` shows the notebooks of a run that is there
docs: $(INSTALLED)  ## run all notebooks (one to two hours), and build the site into build/docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(if $(RUN),,$(BIN)/depthlens run all --profile demo --out build/run)
	DEPTHLENS_RUN=$(abspath $(or $(RUN),build/run)) $(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

badges: $(INSTALLED)  ## write badges and the set-up cell of Colab, once pyproject.toml has the repository's address
	$(BIN)/python docs/badges.py

# The environment is outside the checkout, so that nothing but the wheel can be found. TMPDIR says where, for 2 to 7 GB.
wheel:  ## build the wheel into dist/, and run a notebook with it in an empty environment
	rm -rf dist
	set -e; empty=$$(mktemp -d); trap 'rm -rf "$$empty"' EXIT INT TERM; unset PYTHONPATH; \
	$(PYTHON) -m venv "$$empty/env"; \
	"$$empty/env/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .; \
	"$$empty/env/bin/python" -m pip install --quiet --disable-pip-version-check dist/depthlens-*.whl; \
	cd "$$empty"; DEPTHLENS_STORE="$$empty/store" env/bin/depthlens run 00_tour --profile smoke --out run; \
	test -s run/index.html

lint: $(INSTALLED_DEV)  ## ruff over package, tests and notebooks; mypy over the package
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean:  ## remove caches and build leftovers; keeps .venv and runs/
	rm -rf build dist docs/made *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf

# A .venv without a working pip is repaired in place.
$(INSTALLED): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 && exit 0; \
	for python in "$(PYTHON)" python3.13 python3.12 python3.11; do \
	    "$$python" -c '$(IN_RANGE)' 2>/dev/null || continue; \
	    echo "creating $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv $(VENV) && exit 0; \
	    echo "make: '$$python -m venv' failed; on Debian and Ubuntu install python3-venv" >&2; exit 1; \
	done; \
	echo "make: depthlens needs Python 3.11, 3.12 or 3.13; none was found; install one or name it: make PYTHON=/path/to/python" >&2; exit 1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
