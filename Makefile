# Two commands for a newcomer: `make demo` and `make test`. They need python3 (3.11 or later, with venv) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# `make demo DATA=chest_xray WEIGHTS=backbone.weights.h5` runs on real radiographs.
DATA ?=
WEIGHTS ?= imagenet
TESTS ?=
# Two processes for the tests: one has TensorFlow in its memory and makes all networks (tests/conftest.py).
PROCESSES ?= -n 2 --dist loadgroup

.PHONY: demo test test-fast coverage check docs setup clean

demo: setup
	$(BIN)/cxr-edge demo $(DATA) --weights $(WEIGHTS) -o demo

test: setup
	$(BIN)/python -m pytest $(PROCESSES)

# Without the tests that train or export a network, or run for many seconds.
test-fast: setup
	$(BIN)/python -m pytest $(PROCESSES) -m "not slow"

# Of the whole suite, or of a part: make coverage TESTS='tests/runtime' or TESTS='-m "not slow"'.
coverage: setup
	mkdir -p build/coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in build/site; every warning is an error.
docs: setup
	$(BIN)/mkdocs build --strict

setup: $(VENV)/installed

# Python compiles a module when it is first imported. Compiling all of them here takes minutes and 0.6 GB.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), about 4 GB; this takes a few minutes"
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist
