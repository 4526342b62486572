# Two commands do everything on a fresh machine, set-up included: make run, make test.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
PROFILE ?= pipelines/digits.yaml
POLICY ?= pipelines/policies/digits.yaml

.PHONY: gate run test test-all setup fmt lint types layers check bench report clean

run: $(STAMP)  ## the main job, on data that ships with a package
	$(BIN)/hwopt pipeline run $(PROFILE)

test: $(STAMP)  ## the tests, without the slow ones
	$(BIN)/pytest -q -m "not slow"

test-all: $(STAMP)  ## all tests
	$(BIN)/pytest -q

setup: $(STAMP)  ## the virtual environment only

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hwopt needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

fmt: $(STAMP)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

check: test lint types layers  ## what CI runs

bench: $(STAMP)  ## the profile's measurements again; trained and exported models are kept
	$(BIN)/hwopt pipeline run $(PROFILE) --remeasure

gate: $(STAMP)  ## the profile's run against a policy; gate.xml and summary.md for CI
	$(BIN)/hwopt pipeline run $(PROFILE) --verdict-ok
	$(BIN)/hwopt gate latest --policy $(POLICY) --junit gate.xml --summary summary.md

report: $(STAMP)  ## the newest run as Markdown
	$(BIN)/hwopt report latest --format md

clean:  ## all but the run records in .hwopt
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
