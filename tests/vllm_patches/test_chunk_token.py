"""Patch `v1-chunk-token`: the token that a drafter reads at the end of a piece of a prompt, live and alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.one_thread import run_script

from vllm_patches.patches import v1_chunk_token

SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer as Proposer
read = []
propose = Proposer.propose
def listen(self, *args, **kwargs):
    read.append(kwargs["next_token_ids"].tolist())
    return propose(self, *args, **kwargs)
Proposer.propose = listen
llm = LLM(sys.argv[1], skip_tokenizer_init=True, dtype="float32", enforce_eager=True, enable_prefix_caching=False,
          max_model_len=128, max_num_seqs=2, max_num_batched_tokens=25, generation_config="vllm",
          speculative_config={"method": "eagle3", "model": sys.argv[2], "num_speculative_tokens": 3})
read.clear()
prompt = [(7 * j) % 24 for j in range(60)]
params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, detokenize=False)
output = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs[0]
print(json.dumps({"read": [row[0] for row in read[:3]], "prompt": prompt, "first": output.token_ids[0]}))
"""


def generate(checkpoints: tuple[Path, Path], patches: str) -> dict[str, list[int]]:
    done = run_script(SCRIPT, *checkpoints, patches=patches)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.engine
def test_a_drafter_reads_the_token_after_each_piece_of_a_prompt(checkpoints: tuple[Path, Path]) -> None:
    found = generate(checkpoints, patches="1")
    assert found["read"] == [found["prompt"][25], found["prompt"][50], found["first"]]


@pytest.mark.long
@pytest.mark.engine
def test_the_stock_engine_gives_it_the_prompt_s_last_token(checkpoints: tuple[Path, Path]) -> None:
    """When this fails the row can go."""
    found = generate(checkpoints, patches="0")
    assert found["read"] == [found["prompt"][-1], found["prompt"][-1], found["first"]]


def test_only_unfinished_prompts_of_this_step_end_earlier() -> None:
    batch = SimpleNamespace(
        num_reqs=3,
        req_ids=["cut", "whole", "not told of"],
        num_tokens_no_spec=np.array([60, 40, 50]),
        num_computed_tokens_cpu=np.array([25, 0, 10]),
        vocab_size=24,
    )
    requests = {
        name: SimpleNamespace(num_tokens=count) for name, count in zip(batch.req_ids, (60, 40, 50), strict=True)
    }
    drafter = SimpleNamespace()
    runner = SimpleNamespace(drafter=drafter)
    v1_chunk_token.note(runner, SimpleNamespace(num_scheduled_tokens={"cut": 25, "whole": 40}))
    seen = v1_chunk_token.replace(lambda self, sampled, requests, batch, mask: batch)(drafter, 0, requests, batch, 0)
    assert seen.num_tokens_no_spec.tolist() == [51, 40, 50]  # the token read is number 50, counted from 0
    assert batch.num_tokens_no_spec.tolist() == [60, 40, 50] and seen.vocab_size == 24
