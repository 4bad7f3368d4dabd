"""Run one engine in a process of its own: `python engine_run.py job.json result.json`.

Job: target, drafter, k, prompt, max_tokens, and batches, a list of {n, temperature, ...} (SamplingParams fields
beside n, the number of requests). Result: statuses of the worker's and this process's patches; for each batch the
tokens [n][max_tokens] and the accepted counts of the first verify step [n].
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any


def run(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    from vllm_patches import status
    from vllm_patches.worker import EXTENSION, ask

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
        max_num_seqs=job.get("max_num_seqs", 512),
        max_num_batched_tokens=8192,
        generation_config="vllm",
        per_request_spec_decode_metrics="detailed",
        disable_log_stats=False,
        seed=job.get("seed", 0),
    )
    result: dict[str, Any] = {
        "worker": [asdict(row) for row in ask(llm)],
        "frontend": [asdict(row) for row in status()],
        "batches": [],
    }
    for batch in job["batches"]:
        params = SamplingParams(
            max_tokens=job["max_tokens"], ignore_eos=True, detokenize=False, **{k: v for k, v in batch.items() if k != "n"}
        )
        prompts = [{"prompt_token_ids": job["prompt"]}] * batch["n"]
        outputs = [request.outputs[0] for request in llm.generate(prompts, params, use_tqdm=False)]
        result["batches"].append(
            {
                "tokens": [list(output.token_ids) for output in outputs],
                "accepted": [output.spec_decode_metrics.per_step_accepted[0] for output in outputs],
            }
        )
    return result


if __name__ == "__main__":
    source, destination = map(Path, sys.argv[1:])
    destination.write_text(json.dumps(run(json.loads(source.read_text()))))
