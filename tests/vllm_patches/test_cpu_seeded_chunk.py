"""Patch `cpu-seeded-chunk`: seeded requests whose prompts are cut by the token budget, on a live engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.one_thread import run_script

SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], skip_tokenizer_init=True, dtype="float32", enforce_eager=True, enable_prefix_caching=False,
          max_model_len=128, max_num_seqs=8, max_num_batched_tokens=int(sys.argv[2]), generation_config="vllm")
prompts = [{"prompt_token_ids": [(3 * i + j) % 24 for j in range(60)]} for i in range(4)]
params = [SamplingParams(temperature=1.0, max_tokens=8, seed=100 + i, ignore_eos=True, detokenize=False)
          for i in range(4)]
outputs = llm.generate(prompts, params, use_tqdm=False)
print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""


@pytest.mark.slow
@pytest.mark.engine
def test_a_seeded_request_samples_the_same_tokens_however_its_prompt_is_cut(checkpoints: tuple[Path, Path]) -> None:
    """Without the patch the second engine dies; a patch that let a chunk draw would give other tokens.

    Rounding depends on how the prompt is cut, so one of the four may differ.
    """
    whole, cut = (run_script(SCRIPT, checkpoints[0], budget, patches="1") for budget in (1024, 100))
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert cut.returncode == 0, cut.stderr[-2000:]
    tokens, others = (json.loads(done.stdout.splitlines()[-1]) for done in (whole, cut))
    assert len(tokens) == 4 and sum(a == b for a, b in zip(tokens, others, strict=True)) >= 3


@pytest.mark.slow
@pytest.mark.engine
def test_the_stock_engine_dies_on_it(checkpoints: tuple[Path, Path]) -> None:
    stock = run_script(SCRIPT, checkpoints[0], 100, patches="0")
    assert stock.returncode != 0
    assert "CPU Generator does not use offset" in stock.stderr
