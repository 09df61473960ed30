# Two commands set everything up: `make demo` and `make test`. Both build .venv on first use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo demo-full test check bench clean system

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/install_system_libraries.sh
	@sh scripts/install_system_libraries.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev,deploy]'
	@# References for the parity tests: their metadata ask for torchvision, what the tests use of them does not.
	$(BIN)/python -m pip install --quiet --no-deps 'DALL-E==0.1' attrs 'taming-transformers==0.0.1' 'mup==1.0.0'
	@# Its metadata ask for numpy 2; it runs with 1.26 (tests/deploy).
	$(BIN)/python -m pip install --quiet --no-deps 'panda-python==1.1.1'
	$(BIN)/toto_robot doctor || true
	@touch $(STAMP)

demo: setup            ## the whole chain, small: video -> tokens -> backbone -> policy -> report (resumable)
	$(BIN)/toto_robot demo

demo-full: setup       ## the same table at 20, 50 and 200 demonstrations over 3 policy seeds (an hour or two, resumable)
	$(BIN)/toto_robot demo experiment=demo_full run=outputs/demo_full

test: setup            ## architecture contracts, lint, types, then the tests
	$(BIN)/lint-imports
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

check: setup           ## the fast half of `make test`: no tests that train or render
	$(BIN)/lint-imports
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup           ## every benchmark, ours and the peer in one run
	$(BIN)/python benchmarks/env_speed.py
	$(BIN)/python benchmarks/robosuite_speed.py
	$(BIN)/python benchmarks/store_speed.py
	$(BIN)/python benchmarks/loader_speed.py
	$(BIN)/python benchmarks/tokenize_speed.py
	$(BIN)/python benchmarks/expert_success.py
	$(BIN)/python benchmarks/pretrain_speed.py
	$(BIN)/python benchmarks/pretrain_parts.py
	$(BIN)/python benchmarks/stream_latency.py nano --tokenizers dvae local
	$(BIN)/python benchmarks/control_jitter.py

clean:
	rm -rf $(VENV) outputs
