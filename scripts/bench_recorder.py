"""What the recorder of p and q costs: `python scripts/bench_recorder.py`, or with `--runner v2`.

The zoo at T = 1. On V1 the recorder's own calls are timed inside a run (on a CPU they are done when they return) and
held against the rest of the same run: two runs with other random drafts differ by more than the recorder costs. Writes
results/bench/recorder.json.

On V2 requests of equal seeds draw equal tokens, so that one engine can do the same work with the recorder and without:
pairs of runs, each going first every other time, whose processor seconds are compared. Writes recorder_v2.json.
"""

from __future__ import annotations

import argparse
import itertools
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
from speceval.protocol import Runner
from speceval.store import Store
from speceval.store.schema import Counters, Segment
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
V2_ROUNDS = 8
V2_SEEDS = tuple(range(4))
V2_CASES = (("lk-eagle3", 5, 64), ("lk-mtp", 7, 64))
V2_RESULT = Path("results/bench/recorder_v2.json")


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runner", choices=("v1", "v2"), default="v1")
    v2 = parser.parse_args().runner == "v2"
    result = {
        "command": "python scripts/bench_recorder.py" + " --runner v2" * v2,
        "environment": environment().model_dump(),
        "rounds": V2_ROUNDS if v2 else ROUNDS,
        "cases": [pairs(*case) for case in V2_CASES] if v2 else [shares(*case) for case in CASES],
    }
    write_whole(V2_RESULT if v2 else RESULT, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["cases"], indent=2))


def shares(draft: str, k: int, batch: int) -> dict[str, Any]:
    """1 and the seconds in the recorder over the other seconds of the run, round by round."""
    found = []
    with running(draft, k, batch, SEEDS) as (_, measure):
        for _ in range(ROUNDS + 1):
            with stopwatch() as spent:
                segment = measure()
            found.append(1 + sum(spent) / (segment.seconds - sum(spent)))
    return case(draft, k, batch, found[1:])  # the first round warms up


def pairs(draft: str, k: int, batch: int) -> dict[str, Any]:
    """Processor seconds with the recorder over those without, pair by pair."""
    found = []
    with running(draft, k, batch, V2_SEEDS, "v2") as (engine, measure):
        measure()
        for number in range(V2_ROUNDS):
            seconds: dict[bool, float] = {}
            counted: list[Counters | None] = []
            for on in (number % 2 == 0, number % 2 == 1):
                (engine.listen if on else engine.unlisten)(offline.OVERLAP)
                engine._recorder = offline.OVERLAP if on else None
                began = time.process_time()
                counted.append(measure().counters)
                seconds[on] = time.process_time() - began
            assert counted[0] == counted[1], "the two runs of a pair accepted other drafts"
            found.append(seconds[True] / seconds[False])
    return case(draft, k, batch, found)


def case(draft: str, k: int, batch: int, ratios: list[float]) -> dict[str, Any]:
    """One entry of the result."""
    rounded = [round(ratio, 4) for ratio in ratios]
    return {
        "draft": draft,
        "k": k,
        "batch": batch,
        "ratios": rounded,
        "median_ratio": round(statistics.median(rounded), 4),
    }


@contextmanager
def running(
    draft: str, k: int, batch: int, seeds: tuple[int, ...], runner_name: Runner | None = None
) -> Iterator[tuple[Any, Callable[[], Segment]]]:
    """An engine, and what measures the demo's prompts on it and returns the stretch."""
    asked = prepare(
        target="zoo",
        draft=draft,
        temperature=1.0,
        suite_names=["demo"],
        seeds=seeds,
        batch=batch,
        k=k,
        runner=runner_name,
    )
    job = launch.fetch(asked)
    numbers = itertools.count()
    with (
        tempfile.TemporaryDirectory() as scratch,
        output_to(Path(scratch) / "engine.log"),
        closing(start_engine(job)) as engine,
    ):
        engine.warm_up()

        def measure() -> Segment:
            progress = runner.Progress(len(runner.plan(job.suites, job.spec)))
            with Store(Path(scratch) / str(next(numbers))) as store:
                template = runner.Template({}, None)
                return runner.measure(engine, job.spec, job.suites, template, store, progress, lambda: None)

        yield engine, measure


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
