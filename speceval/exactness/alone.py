"""Continuations of the target without speculative decoding, drawn in a process of their own.

`python -m speceval.exactness.alone job.json result.json`. Job: `engine` (arguments of vllm.LLM) and `requests` (one
prompt and its sampling parameters each, in order). Result: the tokens of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speceval.errors import UserError
from speceval.exactness.draw import Plan
from speceval.exactness.reference import Tokens
from speceval.measure.job import Job


def draw_baseline(job: Job, plan: Plan, log: Path) -> list[Tokens]:
    """As many continuations of the same prompts as `plan` draws; the engine's output is added to the file `log`.

    A process of its own, before any other engine starts: a device has room for one. Raises `UserError`.
    """
    arguments = {
        "model": job.target.model,
        "revision": job.target.revision,
        "max_num_seqs": job.spec.batch,
        "seed": plan.seed + 1,
        "enable_prefix_caching": job.spec.prefix_caching,
        "trust_remote_code": job.spec.trust_remote_code,
        "generation_config": "vllm",
        **job.spec.engine_args,
    }
    requests = [
        {"prompt": plan.prompts[plan.prompt(i)], **asdict(plan.sampling(i)), "seed": None} for i in range(plan.samples)
    ]
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as output:
        source, result = Path(folder) / "job.json", Path(folder) / "result.json"
        source.write_text(json.dumps({"engine": arguments, "requests": requests}))
        command = [sys.executable, "-m", "speceval.exactness.alone", str(source), str(result)]
        if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode:
            raise UserError(f"the engine without speculative decoding did not run: see {log}")
        return [tuple(tokens) for tokens in json.loads(result.read_text())]


def main(source: Path, result: Path) -> None:
    """The process's work."""
    from speceval.engines.vllm.offline import _environment

    _environment()
    from vllm import LLM, SamplingParams

    job: dict[str, Any] = json.loads(source.read_text())
    llm = LLM(**job["engine"])
    prompts = [{"prompt_token_ids": request.pop("prompt")} for request in job["requests"]]
    params = [SamplingParams(**request, detokenize=False) for request in job["requests"]]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    result.write_text(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
