# make run · make test · make check · make bench: each makes .venv/ first where it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
ARGS ?=

.PHONY: run install test check format bench clean

run: $(RUNTIME)
	$(BIN)/python app.py $(ARGS)

install: $(DEV)

test: $(DEV)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(DEV)
	$(BIN)/python -m benchmarks.dpo_step --quick
	$(BIN)/python -m benchmarks.tastes --tastes shorter,question $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info

$(RUNTIME): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(DEV): $(RUNTIME)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
