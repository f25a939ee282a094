# make verify: install into .venv, build the kernels and prove every variant equal to its reference. make test: the whole test suite.
# make sanitize: the core for the CPU under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: verify test test-fast sanitize lint format bench clean

verify: $(STAMP)
	$(BIN)/eqconv build-kernels
	$(BIN)/eqconv verify --tol 1e-5 --device cpu,emulated

# Without the kernels their tests would be skipped.
test: $(STAMP)
	$(BIN)/eqconv build-kernels
	$(BIN)/python -m pytest -n 2

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

sanitize: $(STAMP)
	$(BIN)/python -m pytest tests/sanitize

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/eqconv bench feature_steered --threads 1 --rounds 7

# PyTorch first: the constraint names the CPU build, so that nothing pulls in the CUDA packages.
$(STAMP): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
