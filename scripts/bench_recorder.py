"""What the recorder of p and q costs: `python scripts/bench_recorder.py`.

The zoo at T = 1. The recorder's own calls are timed inside a run (on a CPU they are done when they return) and held
against the rest of the same run: two runs with other random drafts differ by more than the recorder costs. Writes
results/bench/recorder.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from speceval.engines.vllm import offline
from speceval.engines.vllm.recordings import Recordings
from speceval.files import write_whole
from speceval.measure import launch, runner
from speceval.measure.fingerprint import environment
from speceval.measure.job import prepare
from speceval.measure.output import output_to
from speceval.measure.start import start_engine
from speceval.store import Store
from vllm_patches.taps.overlap import Overlap

ROUNDS = 5
SEEDS = tuple(range(16))
CASES = (("lk-eagle3", 5, 64), ("lk-eagle3", 5, 8), ("lk-mtp", 7, 64))
"""Drafter, K and batch."""
CALLS: tuple[tuple[Any, str], ...] = (
    (Overlap, "hear"),
    (offline, "drain_tap"),
    (Recordings, "take"),
    (Recordings, "pop"),
    (runner, "pack"),
)
"""Everything that a run does because it records."""
RESULT = Path("results/bench/recorder.json")


def main() -> None:
    """Measure and print the shares."""
    result = {
        "command": "python scripts/bench_recorder.py",
        "environment": environment().model_dump(),
        "rounds": ROUNDS,
        "cases": [shares(*case) for case in CASES],
    }
    write_whole(RESULT, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["cases"], indent=2))


def shares(draft: str, k: int, batch: int) -> dict[str, Any]:
    """Seconds in the recorder over the other seconds of the run, round by round."""
    job = launch.fetch(
        prepare(target="zoo", draft=draft, temperature=1.0, suite_names=["demo"], seeds=SEEDS, batch=batch, k=k)
    )
    found = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        output_to(Path(scratch) / "engine.log"),
        closing(start_engine(job)) as engine,
    ):
        engine.warm_up()
        for number in range(ROUNDS + 1):
            progress = runner.Progress(len(runner.plan(job.suites, job.spec)))
            with Store(Path(scratch) / str(number)) as store, stopwatch() as spent:
                segment = runner.measure(
                    engine, job.spec, job.suites, runner.Template({}, None), store, progress, lambda: None
                )
            found.append(sum(spent) / (segment.seconds - sum(spent)))
    ratios = [round(1 + share, 4) for share in found[1:]]  # the first round warms up
    return {"draft": draft, "k": k, "batch": batch, "ratios": ratios, "median_ratio": statistics.median(ratios)}


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """The seconds of each call of the recorder while the context is open."""
    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - began)

        return call

    with ExitStack() as stack:
        for owner, name in CALLS:
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name))))
        yield spent


if __name__ == "__main__":
    main()
