"""What replay saves on the zoo: `python scripts/replay_gain.py [--data-dir DIR] [--suite demo]`.

kl-eagle3 and lk-eagle3 at T = 1: free runs of both (each its own text), then both along the texts of kl-eagle3's run.
The difference of tau_committed, lk - kl, three ways: from free runs as if they were unrelated, from free runs paired by
conversation, and from replays. Every run also cut to fewer seeds (mean over disjoint sets of seeds).
Writes results/statistics/replay.csv.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from speceval.estimate import acceptance, replay
from speceval.estimate.statistics import Interval, paired_ratio_difference, ratio_interval
from speceval.files import write_whole
from speceval.measure import launch
from speceval.measure.job import prepare
from speceval.measure.output import output_to
from speceval.measure.replay import source
from speceval.show import progress as display
from speceval.store import StoredRun, read_run

RESULT = Path("results/statistics/replay.csv")
DRAFTERS = ("kl-eagle3", "lk-eagle3")
SUITES: dict[str, dict[str, Any]] = {
    "demo": {"seeds": tuple(range(40)), "sizes": (1, 5, 40)},
    "gsm8k": {"seeds": (0,), "sizes": (1,), "limit": 400, "max_tokens": 64},
}
WAYS = ("unpaired", "paired", "replay")


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="folder with gsm8k_test.jsonl; without it the dataset hub's")
    parser.add_argument("--suite", choices=list(SUITES), action="append", help="only this one")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for suite in options.suite or SUITES:
            settings = SUITES[suite]
            runs = measure(suite, dict(settings), Path(scratch) / suite, options.data_dir)
            rows += [{"suite": suite, **row} for row in judge(runs, settings["seeds"], settings["sizes"])]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    write_whole(RESULT, table.to_csv(index=False, float_format="%.5g"))
    print(table.to_string(index=False))


def measure(suite: str, settings: dict[str, Any], directory: Path, data_dir: Path | None) -> dict[str, StoredRun]:
    """Free runs ("kl-eagle3 free") and replays ("kl-eagle3 replay") of both drafters."""
    settings.pop("sizes")
    found = {}
    for draft in DRAFTERS:
        found[f"{draft} free"] = run(
            directory / f"{draft}-free",
            draft=draft,
            temperature=1.0,
            suite_names=[suite],
            data_dir=data_dir,
            **settings,
        )
    given = source(found[f"{DRAFTERS[0]} free"])
    for draft in DRAFTERS:
        fields = {name: value for name, value in given.items() if name != "suites"}
        found[f"{draft} replay"] = run(
            directory / f"{draft}-replay", draft=draft, suite_names=list(given["suites"]), data_dir=data_dir, **fields
        )
    return found


def run(directory: Path, **asked: Any) -> StoredRun:
    """Measure one run, its engine in a process of its own: an engine's settings outlive it."""
    import multiprocessing

    worker = multiprocessing.get_context("spawn").Process(target=launch_one, args=(directory, asked))
    worker.start()
    worker.join()
    return read_run(directory)


def launch_one(directory: Path, asked: dict[str, Any]) -> None:
    """The worker's part."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    job = prepare(target="zoo", batch=128, out=directory, **asked)
    with output_to(directory.with_suffix(".log")):
        launch.run(job, display.watcher(Console(file=sys.stderr)), output_to)


def judge(runs: dict[str, StoredRun], seeds: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """One row for each number of seeds and way."""
    for size in sizes:
        sets = [seeds[start : start + size] for start in range(0, len(seeds) - size + 1, size)]
        found = pd.DataFrame([row for chosen in sets for row in three_ways(runs, chosen)])
        for way in WAYS:
            mine = found[found["way"] == way]
            yield {
                "seeds": size,
                "sets": len(sets),
                "way": way,
                **{str(name): mean for name, mean in mine.drop(columns=["way"]).mean().items()},
                "spread": mine["difference"].std(ddof=1) if len(sets) > 1 else np.nan,
            }


def three_ways(runs: dict[str, StoredRun], seeds: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The difference of tau_committed with its half-width, and what it cost: target tokens and verify steps."""
    steps = {name: run.steps[run.steps["seed"].isin(seeds)] for name, run in runs.items()}
    a, b = (f"{draft} free" for draft in DRAFTERS)
    free = [acceptance.conversation_totals(steps[name]) for name in (a, b)]
    taus, halves = zip(
        *(half_width(ratio_interval(totals["committed"], totals["steps"])) for totals in free), strict=True
    )
    tokens = {name: len(rows) if "replay" in name else int(rows["committed"].sum()) for name, rows in steps.items()}
    cost = {"tokens": tokens[a] + tokens[b], "verify_steps": len(steps[a]) + len(steps[b])}
    yield {"way": "unpaired", "difference": taus[1] - taus[0], "half_width": np.hypot(*halves), **cost}
    yield {"way": "paired", **paired(*free), **cost}
    replays = [replay.conversation_totals(steps[f"{draft} replay"]) for draft in DRAFTERS]
    names = [a, *(f"{draft} replay" for draft in DRAFTERS)]
    cost = {"tokens": sum(tokens[name] for name in names), "verify_steps": sum(len(steps[name]) for name in names)}
    yield {"way": "replay", **paired(*replays), **cost}


def paired(a: pd.DataFrame, b: pd.DataFrame) -> dict[str, Any]:
    """b - a, paired by conversation."""
    a, b = a.align(b, join="inner")
    found = paired_ratio_difference(a["committed"], a["steps"], b["committed"], b["steps"])
    difference, half = half_width(found.difference)
    return {"difference": difference, "half_width": half}


def half_width(interval: Interval) -> tuple[float, float]:
    """The estimate and half the width of its interval."""
    assert interval.value is not None and interval.low is not None and interval.high is not None
    return interval.value, (interval.high - interval.low) / 2


if __name__ == "__main__":
    main()
