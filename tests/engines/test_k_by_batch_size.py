"""One engine whose K follows the batch size, started with the arguments that `tune` gives for it."""

from __future__ import annotations

import json

import pytest
from support.one_thread import run_script

from speceval.catalog import fetch, resolve
from speceval.engines.base import Order
from speceval.engines.vllm.offline import OfflineEngine

SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

arguments = json.loads(sys.argv[1])
llm = LLM(dtype="float32", enforce_eager=True, max_model_len=256, disable_log_stats=False, **arguments)

def drafts():
    values = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return [values[f"vllm:spec_decode_num_{name}"] for name in ("drafts", "draft_tokens")]

told = {}
for batch in (1, 2, 8):
    before = drafts()
    sampling = [SamplingParams(temperature=1.0, max_tokens=32, ignore_eos=True, seed=seed) for seed in range(batch)]
    prompts = [{"prompt_token_ids": [5 + number, 7, 9, 11]} for number in range(batch)]
    llm.generate(prompts, sampling, use_tqdm=False)
    steps, tokens = (after - was for after, was in zip(drafts(), before))
    told[batch] = tokens / steps
print(json.dumps(told))
"""


@pytest.mark.engine
@pytest.mark.long
def test_vllm_drafts_as_many_tokens_as_the_ranges_of_tune_say_for_its_batch_size() -> None:
    pair = fetch(resolve("zoo", "lk-eagle3"))
    assert pair.draft is not None
    order = Order("vllm", pair.target, pair.draft, 3, "probabilistic", 1.0)
    arguments = OfflineEngine.serving(order, [(1, 2, 3), (3, 8, 1)]) | {"max_num_seqs": 8, "model": pair.target.model}
    done = run_script(SCRIPT, json.dumps(arguments))
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["1"], told["2"]) == (3, 3)
    assert 1 <= told["8"] < 1.1  # when the last of eight requests end, the batch is small again
