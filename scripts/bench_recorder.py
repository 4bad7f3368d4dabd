"""What the recorder of p and q costs: `python scripts/bench_recorder.py`.

One engine on the zoo, T = 1; the recorder is switched on and off in turns, so that both see the same machine. Drafts
are drawn anew each round: times are compared per committed token. Writes results/bench/recorder.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from speceval import display, launch, runner
from speceval.engines.offline import OfflineEngine
from speceval.engines.recordings import Recordings
from speceval.store import Store
from vllm_patches.worker import record

ROUNDS = 9
SEEDS = tuple(range(16))
CASES = (("lk-eagle3", 5, 64), ("lk-eagle3", 5, 8), ("lk-mtp", 7, 64))
"""Drafter, K and batch."""
RESULT = Path("results/bench/recorder.json")


def main() -> None:
    """Measure and print the ratios."""
    result = {
        "command": "python scripts/bench_recorder.py",
        "environment": launch.environment(),
        "rounds": ROUNDS,
        "cases": [ratios(*case) for case in CASES],
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["cases"], indent=2))


def ratios(draft: str, k: int, batch: int) -> dict[str, Any]:
    """Seconds per committed token with the recorder over those without, round by round."""
    job = launch.fetch(
        launch.prepare(target="zoo", draft=draft, temperature=1.0, suite_names=["demo"], seeds=SEEDS, batch=batch, k=k)
    )
    with tempfile.TemporaryDirectory() as scratch, display.output_to(Path(scratch) / "engine.log"):
        engine = launch.start_engine(job)
        engine.warm_up()
        per_token(engine, job, Path(scratch) / "warm", on=True)
        rounds = []
        for number in range(ROUNDS):
            order = (True, False) if number % 2 else (False, True)
            seconds = {on: per_token(engine, job, Path(scratch) / f"{number} {on}", on) for on in order}
            rounds.append(seconds[True] / seconds[False])
    return {
        "draft": draft,
        "k": k,
        "batch": batch,
        "ratios": [round(ratio, 4) for ratio in rounds],
        "median_ratio": round(statistics.median(rounds), 4),
    }


def per_token(engine: OfflineEngine, job: launch.Job, directory: Path, on: bool) -> float:
    """Seconds per committed token of one run of the job."""
    record(engine.llm, on)
    engine._recordings = Recordings() if on else None
    progress = runner.Progress(len(runner.plan(job.suites, job.spec.seeds)))
    with Store(directory) as store:
        segment = runner.measure(engine, job.spec, job.suites, runner.Template({}, None), store, progress, lambda: None)
    return segment.seconds / segment.tokens


if __name__ == "__main__":
    main()
