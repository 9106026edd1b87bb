# Each target is one command; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Debian's interpreter: every user of the machine can run it.
PYTHON ?= /usr/bin/python3
BIN := .venv/bin
CODE := operations identity transport plugins keystores attestors authorities governance publishers server agent tests bench
SECONDS ?= 3600
# How many processes run tests: most of their time is waiting. Each takes the next test, the long ones of
# tests/integration before those of tests/unit. WORKERS=0 runs them in one.
WORKERS ?= $(shell echo $$((2 * $$(nproc))))
SPREAD = --dist load --maxschedchunk 1

.PHONY: help install demo test interop soak lint types mypy basedpyright bench fresh generate lock keystore-plugins clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## Debian packages that are missing, .venv with the locked dependencies, the commands in .venv/bin

.venv/.installed: requirements-dev.lock pyproject.toml ci/packages $(wildcard transport/*.c transport/*.h transport/build_*.py)
	ci/packages
	ci/install $(PYTHON)
	touch $@

demo: install ## a workload gets an SVID signed by a key in a SoftHSM token; two workloads shake hands over mutual TLS
	ci/demo

test: install ## the tests, with SoftHSM and swtpm
	$(BIN)/pytest -m "not interop and not soak" -n $(WORKERS) $(SPREAD) $(ARGS)

interop: install ## published clients in Go, Python, Rust and Java against our server and agent; needs Go, Rust, a JDK, Maven
	@for tool in go cargo java mvn; do command -v $$tool >/dev/null || \
	  { echo "make interop needs $$tool: install golang, cargo, default-jdk, maven, or put $$tool on the PATH" >&2; exit 1; }; done
	ci/packages interop
	$(BIN)/pytest -m interop -n 2 $(SPREAD) tests/interop tests/contract $(ARGS)

soak: install ## an hour of rotations at lives of seconds, under load; SECONDS=300 for a shorter one
	SPIRE_SOAK_SECONDS=$(SECONDS) $(BIN)/pytest -m soak tests/soak $(ARGS)

lint: install ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: mypy basedpyright ## mypy and basedpyright, both strict

mypy: install
	$(BIN)/mypy $(CODE)

basedpyright: install
	$(BIN)/basedpyright $(CODE)

bench: install ## figures for this server; beside a Go one when SPIRE_SERVER_BIN and SPIRE_AGENT_BIN name it
	$(BIN)/python -m compileall -q $(CODE) generated
	$(BIN)/python -m bench $(ARGS)

fresh: ## both README commands on a minimal Debian 12 and 13, as a newcomer (root, mmdebstrap, systemd-nspawn)
	ci/fresh

generate: install ## generated/ from protos/, manual pages and docs/parity.md from the code
	ci/generate
	ci/manpages
	$(BIN)/python -m tests.parity.report

keystore-plugins: install ## build/plugins/: the key stores as plugins of SPIRE in Go, one file each, with their checksums
	ci/keystore-plugins

lock: ## requirements*.lock from pyproject.toml
	ci/lock

clean: ## removes .venv and what was built
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache transport/_*.so transport/_*.c
