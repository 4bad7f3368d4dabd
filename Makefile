PYTHON ?= python3
RUN := .venv/bin/python
# A container may forbid byte code; importing vLLM without it costs 20 s each time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo demo-all real real-train real-train-long test test-all quick lint docs bench results docs-figures clean

setup:
	@$(PYTHON) scripts/setup_env.py

demo: setup
	@$(RUN) -m speceval demo

demo-all: setup
	@$(RUN) -m speceval demo --all

# The benchmarks' files: SPECEVAL_DATA_DIR, else the dataset hub.
real: setup
	@$(RUN) scripts/real.py

# Hours on a busy machine, about a quarter of an hour on two idle cores; interrupted, the same command goes on.
real-train: setup
	@$(RUN) scripts/smollm2/collect.py results/smollm2-own
	@$(RUN) scripts/smollm2/train.py results/smollm2-own results/smollm2-trained --losses kl
	@$(RUN) scripts/smollm2/train.py results/smollm2-own results/smollm2-trained --losses lk_lambda --base kl-eagle3

# Hours, for drafters that draft twice as far; docs/study.md has what it took.
LONG = --name=-long --draft-vocabulary 8192 --intermediate 768 --warmup 3200 --steps 800 --look-every 100
real-train-long: setup
	@$(RUN) scripts/smollm2/collect.py results/smollm2-own --prompts 6000
	@$(RUN) scripts/smollm2/train.py results/smollm2-own results/smollm2-trained $(LONG) --losses kl
	@$(RUN) scripts/smollm2/train.py results/smollm2-own results/smollm2-trained $(LONG) --losses lk_lambda --base kl-eagle3-long

test: setup lint docs
	@$(RUN) -m pytest -m "not gpu and not long" -n 2 --dist loadfile

# Also what takes minutes each.
test-all: setup lint docs
	@$(RUN) -m pytest -m "not gpu" -n 2 --dist loadfile

# Two minutes instead of the whole: nothing that starts vLLM or takes more than a few seconds.
quick: setup
	@$(RUN) -m pytest -m "not engine and not slow and not gpu" -n 2 --dist loadfile

lint: setup
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

docs: setup
	@$(RUN) -m mkdocs build --strict --quiet

bench: setup
	@$(RUN) scripts/bench.py

results: setup
	@$(RUN) scripts/make_results.py

docs-figures: setup
	@$(RUN) scripts/docs_numbers.py
	@$(RUN) scripts/notebooks.py

clean:
	rm -rf .venv site results/demo results/demo-all .mypy_cache .ruff_cache .pytest_cache
