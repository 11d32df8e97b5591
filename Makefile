# Needs Python 3.11+ (with venv) and make; everything else is installed into .venv.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null && $$p -c 'import sys, venv; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
STAMP := $(VENV)/.installed
DEMO ?= demo
# Pins are for Python 3.11, where CI runs; newer Pythons take the ranges of pyproject.toml.
CONSTRAINTS = $(shell $(PYTHON) -c 'import sys; print("-c constraints/ci-py311.txt" if sys.version_info[:2] == (3, 11) else "")')

.PHONY: setup demo test lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints/ci-py311.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with the venv module is needed."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet $(CONSTRAINTS) -e '.[dev]'
	touch $@

demo: setup
	$(VENV)/bin/spatialscope demo $(DEMO)

test: setup
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: setup
	$(VENV)/bin/python -m benchmarks

clean:
	rm -rf $(VENV) $(DEMO)
