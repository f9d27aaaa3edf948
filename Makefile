# One vocabulary for people and for CI. Two commands set everything up themselves:
# `make demo` and `make test`; they need a Rust toolchain, a C compiler and Python 3.11+.

SHELL := /bin/sh

# Any Python from 3.11 on starts the scripts in tools/ (standard library only).
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 \
    $(wildcard $(HOME)/.pyenv/versions/3.1[1-9]*/bin/python3 $(PYENV_ROOT)/versions/3.1[1-9]*/bin/python3)
PYTHON ?= $(shell for p in $(CANDIDATES); do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ifeq ($(strip $(PYTHON)),)
$(error no Python 3.11 or newer found. On Debian: apt install python3 python3-venv)
endif

.DEFAULT_GOAL := help
.PHONY: bench bench-core bench-peers bench-traces check clean demo dev fmt fuzz help lock soak system \
    test test-core test-failpoints test-integrations test-loom test-memcheck test-python wheel which-python

bench: $(if $(ARGS),,bench-core) bench-peers ## Measure: criterion for the core, then the table against the rivals (ARGS: only that, "--only adaptive")

bench-core: ## Measure the core alone (criterion)
	cargo bench --locked --bench core -- $(ARGS)

bench-peers: ## Measure against the rivals in one interleaved run (ARGS="--quick --only cached")
	$(PYTHON) tools/wheels.py bench
	.venv-bench/bin/python benches/peers $(ARGS)

bench-traces: ## Replay whole production traces against a provider's limits (ARGS="--http --only code")
	$(PYTHON) tools/wheels.py demo
	.venv-demo/bin/python benches/replays.py $(ARGS)

check: ## Check form, lints, types, stubs and layers; change nothing
	$(PYTHON) tools/check.py

clean: ## Remove everything that was built or installed here
	rm -rf target target-* dist .venv .venv-* .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis

demo: ## Run the main job: a guarded agent on a real provider, in under two minutes (TRACE=file)
	$(PYTHON) tools/wheels.py demo
	.venv-demo/bin/ferrogate demo $(if $(TRACE),--trace "$(TRACE)") $(ARGS)

dev: ## Build the extension for one Python and install it in .venv
	$(PYTHON) tools/wheels.py dev

fmt: ## Format Rust and Python, and apply what ruff can repair
	cargo fmt
	$(PYTHON) tools/wheels.py tools
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

fuzz: ## Fuzz the codecs, frames, change log and keys (FUZZ_SECONDS=60 for each; ARGS="json key")
	$(PYTHON) tools/fuzz.py $(ARGS)

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | LC_ALL=C sort -t: -k1,1 | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 18

lock: ## Resolve requirements/*.in again into pinned, hashed lock files (UPGRADE=1 for newer versions)
	$(PYTHON) tools/lock.py $(if $(UPGRADE),--upgrade)

soak: ## Run core and wheel tests with their full counts (FERROGATE_SOAK=times, default 100), and fuzz
	FERROGATE_SOAK=$${FERROGATE_SOAK:-100} $(PYTHON) tools/suite.py core python fuzz

system: ## Install the system packages that only some tests need (valgrind, redis-server, openssl), or say what is missing
	@sh tools/system.sh

test: system ## Test everything, the built wheel on every CPython of the machine
	$(PYTHON) tools/suite.py

test-core: ## Test the core without Python
	$(PYTHON) tools/suite.py core

test-failpoints: ## Test that an injected panic in every exported callable does no harm
	$(PYTHON) tools/suite.py failpoints

test-integrations: ## Test the adapters with the frameworks that they are for
	$(PYTHON) tools/suite.py integrations

test-loom: ## Model-check the concurrent parts
	$(PYTHON) tools/suite.py loom

test-memcheck: system ## Test the extension under valgrind
	$(PYTHON) tools/suite.py memcheck

test-python: ## Test the built wheel (FERROGATE_PYTHONS="3.12" PYTEST_ARGS="-k cache")
	$(PYTHON) tools/suite.py python

wheel: ## Build one wheel for every CPython of the machine into dist/
	$(PYTHON) tools/wheels.py all

which-python:
	@echo $(PYTHON)
