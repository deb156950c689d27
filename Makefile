# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the others.
# Needs Python 3.11 or newer, make and a package index; nothing is installed outside $(VENV).

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= logical
ARGS    ?=

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
INSTALL := $(PIP) install --constraint constraints.txt

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test check format docs mutants bench compare clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/.installed  ## create .venv with everything pinned in constraints.txt

# Runs again only when what should be installed has changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("prefopt needs Python 3.11 or newer and this is " \
	  + sys.version.split()[0] + "; name one with: make PYTHON=python3.12" \
	  if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) torch==2.13.0
	@$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(INSTALL) --editable '.[bench]'
	@touch $@

$(VENV)/.installed-mutants: $(VENV)/.installed
	@$(INSTALL) --editable '.[mutants]'
	@touch $@

demo: setup  ## the main job on a small generated world: train, measure, report
	@$(BIN)/prefopt demo $(ARGS)

test: setup  ## the whole test suite
	@$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile $(ARGS)

check: setup  ## the gate before a commit: format, lint, types, house rules, documentation
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest --quiet tests/test_house.py tests/test_docs.py

format: setup  ## rewrite the files as `check` wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup  ## write the pages that are made from what they describe
	@$(BIN)/python docs/make_objectives.py
	@$(BIN)/python docs/make_adapters.py
	@$(BIN)/python docs/make_scale.py
	@$(BIN)/python docs/make_data.py
	@$(BIN)/python docs/make_rounds.py

# One test process a core; it continues where it was stopped, and tests again what has changed.
mutants: $(VENV)/.installed-mutants  ## break the objectives in some thousand places: does a test notice?
	@OMP_NUM_THREADS=1 $(BIN)/mutmut run $(ARGS)
	@$(BIN)/mutmut results
	@$(BIN)/mutmut export-cicd-stats >/dev/null
	@$(BIN)/python -c 'import json; n = json.load(open("mutants/mutmut-cicd-stats.json")); \
	  share = (n["killed"] + n["timeout"]) / n["total"]; print(n, f"{share:.1%} noticed"); exit(share < 0.95)'

# About an hour on two idle cores. After 45 minutes (ARGS="--budget 90") no further case begins;
# the same command then goes on, and measures nothing twice that was measured with this code.
bench: $(VENV)/.installed-bench  ## speed beside TRL, the floor, growth: writes benchmarks/results (ROWS=hh.jsonl.gz)
	@$(BIN)/python benchmarks/bench.py $(if $(ROWS),--rows $(ROWS)) $(ARGS)

compare: setup  ## every objective on the demonstration's world; goes on where it was stopped
	@$(BIN)/python benchmarks/objectives.py $(ARGS)

clean:  ## remove the environment and every cache (runs/ stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis mutants
