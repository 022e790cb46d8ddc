# Every target sets up what it needs. 'make help' lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
VENV ?= .venv
IMAGE ?=
# Where install-docs installs; DESTDIR goes before it, for those who make packages.
PREFIX ?= /usr/local
DESTDIR ?=
# More arguments for the program that a target runs: make test ARGS='-k qed'
ARGS ?=

BIN := $(VENV)/bin
CODE := $(wildcard src tests benchmarks examples)
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
SETUP := pyproject.toml tools/make_venv.sh

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(RUN): $(SETUP)
	PYTHON='$(PYTHON)' tools/make_venv.sh '$(VENV)'
	touch $@

$(DEV): $(SETUP)
	PYTHON='$(PYTHON)' tools/make_venv.sh '$(VENV)' '[dev]'
	touch $(RUN) $@

.PHONY: peers
peers: ## install the foreign tools that tests and benchmarks use
	@tools/install_peers.sh

.PHONY: run
run: $(RUN) ## show the main job; on an image of yours with IMAGE=path
	@$(BIN)/python examples/main_job.py $(if $(IMAGE),'$(IMAGE)')

.PHONY: test
test: peers lint types ## all checks and all tests but the long ones
	$(BIN)/pytest -n auto $(ARGS)

.PHONY: long
long: peers $(DEV) ## the tests that take minutes or hours
	$(BIN)/pytest -n auto -m long --timeout=0 $(ARGS)

.PHONY: lint
lint: $(DEV) ## style, by ruff
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

.PHONY: format
format: $(DEV) ## put the style right where ruff can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

.PHONY: types
types: $(DEV) ## types, by mypy --strict
	$(BIN)/mypy $(CODE)

.PHONY: coverage
coverage: peers $(DEV) ## which lines the tests do not reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: bench
bench: peers $(RUN) ## measure, side by side with the peers
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: docs
docs: $(DEV) ## manual pages, completion scripts, docs/commands.md and docs/qmp.md
	$(BIN)/python -m blocklayer.cli.docs build/docs
	cp build/docs/share/doc/blocklayer/commands.md docs/commands.md
	$(BIN)/python -m blocklayer.qmp.reference > docs/qmp.md

.PHONY: install-docs
install-docs: docs ## install what 'make docs' makes below PREFIX, for shells and man to find
	mkdir -p '$(DESTDIR)$(PREFIX)'
	cp -R build/docs/share '$(DESTDIR)$(PREFIX)'

.PHONY: clean
clean: ## remove what the other targets made, the virtual environment too
	rm -rf '$(VENV)' build dist htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
