# Everything runs from .venv in this folder; the only things needed beforehand are make and Python 3.11 or newer.
#   make demo                     the whole chain on the embedded data; writes runs/demo/report.html
#   make test ARGS="-k order"     the test suite without its slow part, which .ci/run adds; ARGS go to pytest
#                                 (ARGS="-n 0" runs it in one process instead of one per core)
#   make lint                     ruff, mypy, and a lint of prose (tests/prose_lint.py)
#   make bench                    the measurements in benchmarks/
#   make docs                     write docs/stages.md from the options of the stages
#   make PYTHON=/path/to/python3  another interpreter

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --no-compile --editable

# Pins also hold inside the isolated environments that packages are built in.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore
# Bytecode is written when a module is first imported (--no-compile above): of 14,000 installed files a run needs a few.
unexport PYTHONDONTWRITEBYTECODE
# Another project's modules and an empty HOME (pip would look for its configuration in /) stay outside.
unexport PYTHONPATH
ifeq ($(HOME),)
unexport HOME
endif

.PHONY: demo test lint bench docs
.DEFAULT_GOAL := demo

demo: .venv/installed-report
	$(BIN)/python -m launch.demo

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist worksteal -rs --durations=15 -m "not slow and not compiler" $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.prose_lint

bench: .venv/installed-report
	@for file in $$(grep -l __main__ benchmarks/*.py); do name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

docs: .venv/installed-test
	$(BIN)/python -m launch.stage_docs

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "GLSCL needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/installed-%: .venv/created pyproject.toml constraints.txt
	@echo "installing glscl[$*] into .venv (about a minute) ..." >&2
	@$(INSTALL) '.[$*]'
	@touch $@
