# make demo     runs JupyterLab as a job and prints the link to open; CHECK=1 opens it by itself and ends
# make test     all checks: lint, types, the documentation's links, coverage, unit, property and integration tests
# make coverage fails if the unit tests of the protocol core miss a branch
# make docs     builds the documentation as a site in build/site; fails on broken links and anchors
# make hooks    installs git hooks: lint and types before every commit (pre-commit)
# make bench    runs the benchmarks, beside nginx and configurable-http-proxy
# make bench-scale   measures many agents, running jobs and a long history on one router (docs/scaling.md)
# make apps     uses each recipe of docs/apps.md in a real browser; ARGS="streamlit dash" tries some
# make screenshots   makes the documentation's pictures anew, in a headless Chromium
# make soak     injects faults for a long time (docs/faults.md)
# make fuzz     tries random input for a long time (docs/testing.md); ARGS="--seconds 600 curve heads"
# make audit    looks for known vulnerabilities in what requirements.lock installs; needs the network
# make lock     raises all requirements to their newest versions
# make release-check   tells whether this commit can be released, and builds wheel and sdist (docs/releasing.md)
# make deb      builds the Debian package into dist (docs/deployment-debian.md); CHECK=1 also tries it, as root
# make clean    removes everything that the others made

PYTHON ?= python3
SHELL := /bin/bash
MAKEFLAGS += --no-builtin-rules
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements.lock
# Tests wait for half of their time: two for each processor keep it busy.
TEST_PROCESSES := $(shell echo $$(( $$(nproc) * 2 )))

# The names of the marker files contain a hash of the requirements, so that nothing is installed twice.
WANTED := $(shell cat pyproject.toml $(LOCK) 2>/dev/null | sha256sum | cut -c1-16)
DEMO := $(VENV)/installed-demo-$(WANTED)
DEV := $(VENV)/installed-dev-$(WANTED)
APPS := $(VENV)/installed-apps-$(WANTED)
DOCS := $(VENV)/installed-docs-$(WANTED)
AUDIT := $(VENV)/installed-audit-$(WANTED)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Keeps the user's own Python and pytest settings out.
CLEAN_ENV := env -u PYTHONPATH -u PYTHONHOME -u PYTEST_ADDOPTS -u PYTEST_PLUGINS -u MYPYPATH PYTHONNOUSERSITE=1
PYTEST_ARGS ?=

.PHONY: demo test lint types coverage docs hooks release-check deb apps screenshots bench bench-scale soak fuzz audit lock clean tools bench-tools

demo: $(DEMO)
	@exec $(CLEAN_ENV) $(BIN)/prouter demo $(if $(CHECK),--check)

test: tools $(DEV) $(DOCS)
	@$(MAKE) --no-print-directory -j2 -Otarget types lint docs coverage
	@$(CLEAN_ENV) tools/run_tests $(BIN)/python $(TEST_PROCESSES) $(PYTEST_ARGS)

# Examples alone have to reach every branch, so that the figure does not depend on what hypothesis draws.
coverage: $(DEV)
	$(CLEAN_ENV) $(BIN)/coverage run -m pytest -q -m 'not hypothesis' --ignore tests/unit/fabric/test_schedules.py \
	  tests/unit/fabric tests/unit/transport/zmtp
	$(BIN)/coverage report

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV)
	$(CLEAN_ENV) $(BIN)/mypy

docs: $(DOCS)
	$(CLEAN_ENV) NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

hooks: $(DEV)
	$(BIN)/pre-commit install

release-check: $(DEV)
	$(CLEAN_ENV) $(BIN)/python -m tools.release_check

deb: $(DEV)
	$(CLEAN_ENV) $(BIN)/python -m tools.debian_package
ifdef CHECK
	@tools/need debian
	lintian --allow-root --fail-on error,warning dist/prouter_*.deb
	tools/bare sh -c 'make -s deb && sh tools/check_debian dist/prouter_*.deb'
endif

bench: bench-tools $(DEV)
	$(CLEAN_ENV) $(BIN)/python -m tests.bench $(ARGS)

bench-scale: bench-tools $(DEV)
	$(CLEAN_ENV) $(BIN)/python -m tests.bench.scale $(ARGS)

apps: $(APPS)
	@tools/need apps
	$(CLEAN_ENV) $(BIN)/python -m tests.apps $(ARGS)

screenshots: tools $(DEV)
	$(CLEAN_ENV) $(BIN)/python -m tests.apps.screenshots

soak: tools $(DEV)
	$(CLEAN_ENV) $(BIN)/python -m tests.faults.soak $(ARGS)

fuzz: tools $(DEV)
	$(CLEAN_ENV) $(BIN)/python -m tests.fuzz $(ARGS)

audit: $(AUDIT)
	$(CLEAN_ENV) $(BIN)/python tools/audit.py $(LOCK)

tools:
	@tools/need test

bench-tools: tools
	@tools/need bench

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=…")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { [ "$$(id -u)" -eq 0 ] && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-venv >/dev/null; } || \
	  { echo 'missing: python3-venv (as root: apt-get install python3-venv)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-%-$(WANTED): | $(BIN)/python
	$(PIP) install -c $(LOCK) pip setuptools
	PYTHONWARNINGS=ignore $(PIP) install -c $(LOCK) --no-build-isolation -e '.[$*]'
	@rm -f $(VENV)/installed-$*-*
	@touch $@

$(DEV): | $(DEMO)

$(APPS): | $(DEV)

$(DOCS): | $(DEV)

$(AUDIT): | $(DEV)

# One file for all supported Pythons and platforms: markers select the versions.
lock: | $(BIN)/python
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip --disable-pip-version-check --quiet install uv
	echo 'pip setuptools>=77' | tr ' ' '\n' | build/lock/bin/uv --quiet pip compile --upgrade --universal --python-version 3.10 \
	  --all-extras --no-annotate --no-header --no-emit-index-url --no-emit-find-links pyproject.toml - --output-file build/lock.txt
	{ echo '# Every version of everything that gets installed. Made by "make lock".'; cat build/lock.txt; } > $(LOCK)

clean:
	rm -rf $(VENV) build dist .bench .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find prouter tests -name __pycache__ -prune -exec rm -rf {} +
