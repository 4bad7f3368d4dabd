"""What the harness costs beside the engine: `make bench`.

One engine, the same rendered prompts, seeds and settings; bare `vllm.LLM.generate` and the harness (its loop, its
store with a flush to disk for each conversation, its progress display) take turns, so that both see the same machine.
At T=0 both generate the same tokens; at T=1 drafts are drawn anew, so times are compared per committed token.
Also times `speceval --help`. Writes results/bench/harness.json.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from speceval.engines.vllm.offline import OfflineEngine
from speceval.files import write_whole
from speceval.measure import chat, launch, runner
from speceval.measure.fingerprint import environment
from speceval.measure.job import Job, prepare
from speceval.measure.output import output_to
from speceval.measure.start import order
from speceval.protocol import request_seed
from speceval.show import progress as display
from speceval.store import Store

ROUNDS = 5
SEEDS = tuple(range(16))
RESULT = Path("results/bench/harness.json")


def main() -> None:
    """Measure and print the ratios."""
    result: dict[str, Any] = {
        "command": "make bench",
        "environment": environment().model_dump(),
        "rounds": ROUNDS,
    }
    for temperature in (0.0, 1.0):
        result[f"T={temperature:g}"] = _ratios(temperature)
    result["help_seconds"] = statistics.median(_help_seconds() for _ in range(ROUNDS))
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_whole(RESULT, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _ratios(temperature: float) -> dict[str, Any]:
    job = prepare(
        target="zoo",
        draft="lk-eagle3",
        temperature=temperature,
        suite_names=["demo"],
        seeds=SEEDS,
        batch=64,
        record=False,  # scripts/bench_recorder.py
    )
    job = launch.fetch(job)
    with (
        tempfile.TemporaryDirectory() as scratch,
        output_to(Path(scratch) / "engine.log"),
        closing(OfflineEngine(order(job))) as engine,
    ):
        engine.warm_up()
        _harness(engine, job, Path(scratch) / "warm")
        rounds = []
        for number in range(ROUNDS):
            bare = _bare(engine, job)
            rounds.append((bare, _harness(engine, job, Path(scratch) / str(number))))
    ratios = [harness[0] / harness[1] / (bare[0] / bare[1]) for bare, harness in rounds]
    return {
        "tokens": [harness[1] for _, harness in rounds],
        "bare_seconds": [round(bare[0], 4) for bare, _ in rounds],
        "harness_seconds": [round(harness[0], 4) for _, harness in rounds],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 4),
    }


def _bare(engine: OfflineEngine, job: Job) -> tuple[float, int]:
    """Seconds and committed tokens of `vllm.LLM.generate`."""
    from vllm import SamplingParams

    spec, (suite,) = job.spec, job.suites
    prompts, params = [], []
    for _, conversation, seed in runner.plan(job.suites, spec):
        message = {"role": "user", "content": conversation.turns[0]}
        prompts.append({"prompt_token_ids": chat.render(engine.tokenizer, [message], spec.chat_template_kwargs)})
        params.append(
            SamplingParams(
                temperature=spec.temperature,
                max_tokens=suite.max_tokens,
                seed=request_seed(seed, suite.name, conversation.id, 1) if spec.temperature else None,
            )
        )
    start = time.perf_counter()
    outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start, sum(len(output.outputs[0].token_ids) for output in outputs)


def _harness(engine: OfflineEngine, job: Job, directory: Path) -> tuple[float, int]:
    """Seconds and committed tokens of the harness around the same engine."""
    progress = runner.Progress(len(runner.plan(job.suites, job.spec)))
    watch = display.watcher(Console(file=io.StringIO(), force_terminal=True))
    with Store(directory) as store:
        start = time.perf_counter()
        with watch(progress, job.spec) as changed:
            segment = runner.measure(engine, job.spec, job.suites, runner.Template({}, None), store, progress, changed)
        return time.perf_counter() - start, segment.tokens


def _help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "speceval", "--help"], check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return round(time.perf_counter() - start, 3)


if __name__ == "__main__":
    main()
