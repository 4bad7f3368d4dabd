"""Run vLLM engines on tiny checkpoints, each in a process of its own and several side by side.

The processes are forked from one that has imported vLLM, which takes longer than most jobs.

A job is {"llm": arguments of vllm.LLM, "runs": [...]}; a run is {"prompts": token ids of each request, "params":
arguments of vllm.SamplingParams, or a list of them, one for each request}; its "keep": true keeps the prefix cache.
The result has "worker" (patch statuses there), "kernels" (`worker.ask_kernels`), "preemptions" and "runs": by request
the tokens and, of each verify step, the accepted and drafted counts; and `counts`, the worker's counters over the run.
A job's "taps" listen to all its runs; "reads" has what of ours waited for the device in an engine step (`reads.Watch`).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from scipy import stats

from speceval.engines.vllm.offline import uncollected
from speceval.engines.vllm.start import ZOO_ENVIRONMENT
from speceval.exactness.law import Fit, fit
from vllm_patches import interpreted
from vllm_patches.state import TEXT

DEFAULTS = {
    "skip_tokenizer_init": True,
    "dtype": "float32",
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "max_model_len": 64,
    "max_num_seqs": 512,
    "max_num_batched_tokens": 8192,
    "generation_config": "vllm",
    "per_request_spec_decode_metrics": "detailed",
    "disable_log_stats": False,
    "worker_extension_cls": "vllm_patches.worker.Extension",
    "seed": 0,
}


CPU_ALONE = "patches/v1_draft_sampling.py truncate: __int__"
V2 = {"VLLM_USE_V2_MODEL_RUNNER": "1", **interpreted.ENVIRONMENT}
"""A job's "env" for the V2 runner on a CPU."""
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONDONTWRITEBYTECODE": "", **ZOO_ENVIRONMENT}
"""Of every tiny engine: in its caller's process, on one unbound thread."""


def llm_arguments(target: Path, drafter: Path | None, method: str, k: int = 3, **changes: Any) -> dict[str, Any]:
    """Arguments of vllm.LLM with sampled drafts; `changes` win over the defaults, `spec` is merged into the drafter."""
    speculative = {"method": method, "num_speculative_tokens": k, "draft_sample_method": "probabilistic"}
    speculative |= ({"model": str(drafter)} if drafter else {}) | changes.pop("spec", {})
    return {"model": str(target), "speculative_config": speculative} | DEFAULTS | changes


def same(prompt: list[int], requests: int, **params: Any) -> dict[str, Any]:
    """A run of equal requests."""
    return {"prompts": [prompt] * requests, "params": {"temperature": 1.0, "max_tokens": 3} | params}


def replayed(prompt: list[int]) -> dict[str, Any]:
    """A run whose requests have a text of 10 tokens, every second one also top-k and top-p; the last one has none."""
    texts = [[(3 * i + 5 * j) % 24 for j in range(10)] for i in range(16)]
    asked = [{}, {"top_k": 8, "top_p": 0.9}]
    params = [{"temperature": 1.0, "max_tokens": 10, "extra_args": {TEXT: text}} for text in texts]
    params = [given | asked[i % 2] for i, given in enumerate(params)]
    params[-1].pop("extra_args")
    return {"prompts": [prompt] * len(params), "params": params}


def heard(job: dict[str, Any]) -> dict[str, Any]:
    """The job with every listener there is."""
    return job | {"taps": ["overlap", "evidence", "replay", "count"]}


def check_heard(result: dict[str, Any], prompt: list[int]) -> None:
    """Of a V2 job that is `heard`, whose last run is `replayed`: each request said its text, one token a step, and no
    code of ours waited for the device in a step. (On a CPU alone the largest top-k is read, to sort less.)"""
    texts, run = [given["extra_args"][TEXT] for given in replayed(prompt)["params"][:-1]], result["runs"][-1]
    assert run["tokens"][:-1] == texts and len(run["tokens"][-1]) == 10
    assert all(set(accepted) <= {0} for accepted in run["accepted"][:-1])
    assert [line for line in result["reads"] if line != CPU_ALONE] == []


def engines(root: Path, jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run the jobs, one a core; a job's "env" is added to its environment. {"error": log} for one that failed.

    All jobs are of one model runner.
    """
    folders = [write(root / name, job) for name, job in jobs.items()]
    runners = [{name: value for name, value in job.get("env", {}).items() if name in V2} for job in jobs.values()]
    assert all(runner == runners[0] for runner in runners)
    environment = os.environ | ENVIRONMENT | runners[0]
    command = [sys.executable, __file__, *map(str, folders)]
    with (
        (root / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            assert process.wait(timeout=600 * len(jobs)) == 0, (root / "log").read_text()[-4000:]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return dict(zip(jobs, map(read, folders), strict=True))


def write(folder: Path, job: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job))
    return folder


def read(folder: Path) -> dict[str, Any]:
    """The result that a job's process left."""
    log, result = (folder / "log").read_text(), folder / "result.json"
    return json.loads(result.read_text()) | {"log": log} if result.exists() else {"error": log}


# ------------------------------------------------------------------------------------------------ reading a run


def fit_tokens(run: dict[str, Any], law: np.ndarray, alpha: float) -> Fit:
    """Fit of the requests' first tokens to their joint law."""
    return fit(law, np.array([tokens[: law.ndim] for tokens in run["tokens"]]), alpha)


def acceptance_p(run: dict[str, Any], chances: list[float], step: int = 0) -> list[tuple[float, float]]:
    """For j = 1, 2, ...: share of requests whose verify step `step` accepted j or more, p-value against `chances`."""
    accepted = np.array([row[step] for row in run["accepted"] if len(row) > step])
    hits = [int((accepted >= depth).sum()) for depth in range(1, len(chances) + 1)]
    return [
        (h / len(accepted), stats.binomtest(h, len(accepted), c).pvalue) for h, c in zip(hits, chances, strict=True)
    ]


# ------------------------------------------------------------------------------------------------ in the process


def schedule_ahead() -> None:
    """Asynchronous scheduling, which vLLM's CPU platform switches off."""
    from vllm.platforms.cpu import CpuPlatform

    settle = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, config: Any) -> None:
        settle(cls, config)
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    if job.get("ahead"):
        schedule_ahead()
    from reads import Watch  # type: ignore[import-not-found]
    from vllm import LLM

    from vllm_patches.worker import ask, ask_kernels, start_tap

    llm, watch = LLM(**job["llm"]), Watch()
    for tap in job.get("taps", ()):
        assert (reason := start_tap(llm, tap)) == "", reason
    runs = [generate(llm, run, watch) for run in job["runs"]]
    preemptions = sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
    return {
        "worker": [asdict(row) for row in ask(llm)],
        "kernels": ask_kernels(llm),
        "runs": runs,
        "reads": sorted(watch.seen),
        "preemptions": preemptions,
    }


def generate(llm: Any, run: dict[str, Any], watch: Any) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from vllm_patches.worker import ask_counts

    def parameters(values: dict[str, Any]) -> SamplingParams:
        values = {"ignore_eos": True, "detokenize": False} | values
        if "regex" in values:
            values["structured_outputs"] = StructuredOutputsParams(regex=values.pop("regex"))
        return SamplingParams(**values)

    if not run.get("keep"):
        llm.reset_prefix_cache()
    before = ask_counts(llm)
    prompts = [{"prompt_token_ids": prompt} for prompt in run["prompts"]]
    given = run["params"]
    params = [parameters(each) for each in given] if isinstance(given, list) else parameters(given)
    with watch:
        answers = llm.generate(prompts, params, use_tqdm=False)
    outputs = [request.outputs[0] for request in answers]
    steps = [output.spec_decode_metrics for output in outputs]
    return {
        "tokens": [list(output.token_ids) for output in outputs],
        "accepted": [metrics.per_step_accepted if metrics else [] for metrics in steps],
        "drafted": [metrics.per_step_drafted if metrics else [] for metrics in steps],
        "counts": {name: count - before[name] for name, count in ask_counts(llm).items()},
    }


def run_all(folders: list[Path]) -> None:
    """A process for each folder's job, as many at a time as there are cores."""
    interpreted.prepare()  # of jobs whose "env" is V2
    with uncollected():
        from vllm import LLM  # noqa: F401
        from vllm.v1.worker import cpu_model_runner  # noqa: F401
    gc.freeze()  # vLLM makes ten collections as an engine starts, and each would look at all of its modules
    running, waiting = 0, folders
    while waiting or running:
        if waiting and running < (os.cpu_count() or 1):
            folder, *waiting = waiting
            running += 1
            if os.fork() == 0:
                run_forked(folder)
        else:
            os.wait()
            running -= 1


def run_forked(folder: Path) -> NoReturn:
    """In a process that was forked for it: no result.json if the job fails."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    job = json.loads((folder / "job.json").read_text())
    os.environ |= job.get("env", {})
    try:
        result = json.dumps(run_job(job))
        (folder / "part").write_text(result)
        (folder / "part").rename(folder / "result.json")
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    run_all([Path(folder) for folder in sys.argv[1:]])
