"""Run one vLLM engine in a process of its own: `python engine_run.py job.json result.json`.

Job: target, drafter, prompt, k, max_tokens, max_num_seqs, requests (how many, at each temperature), temperatures.
Result: `worker` and `frontend`, the patch statuses there; `score`, the target's log-probabilities of every token
after each prefix of the prompt [T - 1][V]; `runs`, one per temperature: tokens [n][max_tokens] and the accepted
drafts of each request's first verify step [n].
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speceval.engines.vllm.offline import uncollected

with uncollected():
    from vllm import LLM, SamplingParams

from vllm_patches import status
from vllm_patches.worker import EXTENSION, ask


def run(job: dict[str, Any]) -> dict[str, Any]:
    llm = LLM(
        job["target"],
        skip_tokenizer_init=True,
        speculative_config={
            "method": "eagle3",
            "model": job["drafter"],
            "num_speculative_tokens": job["k"],
            "draft_sample_method": "probabilistic",
        },
        worker_extension_cls=EXTENSION,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=64,
        max_num_seqs=job["max_num_seqs"],
        max_num_batched_tokens=8192,
        max_logprobs=-1,
        generation_config="vllm",
        per_request_spec_decode_metrics="detailed",
        disable_log_stats=False,
        seed=0,
    )
    return {
        "worker": [asdict(row) for row in ask(llm)],
        "frontend": [asdict(row) for row in status()],
        "score": score(llm, job["prompt"]),
        "runs": [sample(llm, job, temperature) for temperature in job["temperatures"]],
    }


def score(llm: LLM, prompt: list[int]) -> list[list[float]]:
    params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=-1, detokenize=False)
    output = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0]
    rows = [row for row in output.prompt_logprobs or [] if row is not None]
    return [[row[token].logprob for token in sorted(row)] for row in rows]


def sample(llm: LLM, job: dict[str, Any], temperature: float) -> dict[str, Any]:
    params = SamplingParams(temperature=temperature, max_tokens=job["max_tokens"], ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": job["prompt"]}] * job["requests"]
    outputs = [request.outputs[0] for request in llm.generate(prompts, params, use_tqdm=False)]
    return {
        "tokens": [list(output.token_ids) for output in outputs],
        "accepted": [output.spec_decode_metrics.per_step_accepted[0] for output in outputs],
    }


if __name__ == "__main__":
    source, destination = map(Path, sys.argv[1:])
    destination.write_text(json.dumps(run(json.loads(source.read_text()))))
