PYTHON ?= python3
RUN := .venv/bin/python
# A container may forbid byte code; importing vLLM without it costs 20 s each time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo demo-all test lint bench clean

setup:
	@$(PYTHON) scripts/setup_env.py

demo: setup
	@$(RUN) -m speceval demo

demo-all: setup
	@$(RUN) -m speceval demo --all

test: setup lint
	@$(RUN) -m pytest -m "not gpu"

lint: setup
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

bench: setup
	@$(RUN) scripts/bench.py

clean:
	rm -rf .venv results/demo results/demo-all .mypy_cache .ruff_cache .pytest_cache
