# The two commands: `make demo` and `make test`. Each makes its own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready

.PHONY: demo test test-all lint format docs screenshots clean help

help:
	@echo "make demo      run the whole pipeline on a phantom and measure the results (under 5 minutes on 2 cores)"
	@echo "make test      every check: lint, types, import contracts, tests"
	@echo "make test-all  the same with the slow suites"
	@echo "make format    put the code into the common form"
	@echo "make docs      write the generated pages of docs/ anew"
	@echo "make screenshots  take the pictures of the dashboard in docs/ anew (needs Chromium); look at them"
	@echo "make clean     remove the environment and what the demo made"

# Python compiles what it imports, and keeps that, whatever the environment says: to compile everything that is
# installed takes half of the installation's time.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "OpticStream needs Python 3.11 or later; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

# What the checks need, besides.
$(READY): $(INSTALLED)
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/opticstream demo --out demo-output

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The server's tests begin in the order of the folders; the longest one, tests/hosts, is the first, so that it is not the last to end.
SERVER_TESTS := tests/hosts $(filter-out tests/hosts/,$(sort $(wildcard tests/*/)))
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not server"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "server and not slow" -W default $(SERVER_TESTS)

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not server"
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "server" -W default tests

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python docs/generate.py

screenshots: $(READY)
	$(BIN)/python docs/screenshots.py

clean:
	rm -rf $(VENV) demo-output
