"""How long a sweep takes on a cluster: its scheduler (`speceval.measure.replicas.hand_out`) with a clock of its own.

The scheduler is the real one; engines, stores and time are not. Every number of `ASSUMED` is an assumption, not a
measurement: what one engine of a target costs to start and to advance by a step, and how long answers are.

    python scripts/simulate_scheduler.py [--sweep paper] [--gpus 1,8,64] [--json FILE]
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from speceval import suites
from speceval.engines.base import Order
from speceval.measure import sweep as sweeps
from speceval.measure.job import Job
from speceval.measure.kept import expected
from speceval.measure.replicas.hand_out import Event, HandOut
from speceval.measure.replicas.replica import Ready, Report
from speceval.measure.replicas.work import Work
from speceval.store import Key
from speceval.store.schema import Segment


@dataclass(frozen=True)
class Cost:
    """Of one engine of a target."""

    gpus: int
    """Of 80 GB, or as much as the weights need."""
    start: float
    """Seconds: weights from a disk of 2 GB/s, and two minutes for compiling and capturing."""
    step: float
    """Seconds of a verify step of a full batch."""


ASSUMED = {
    "Llama-3.1-8B-Instruct": Cost(1, 130, 0.018),
    "gpt-oss-20b": Cost(1, 130, 0.018),
    "gpt-oss-120b": Cost(1, 155, 0.030),
    "Llama-3.3-70B-Instruct": Cost(4, 190, 0.035),
    "Qwen3-235B-A22B-Instruct-2507": Cost(8, 355, 0.040),
    "DeepSeek-V3-0324": Cost(8, 465, 0.055),
}
SWAP = 3.0
"""Seconds of an exchange of the drafter's weights."""
TAU, TOKENS, SPREAD = 3.5, 350.0, 0.6
"""Tokens of a step; the median answer of a turn, and the deviation of its logarithm."""
LONGEST = 1024


class Clock:
    """A pool whose replicas take the time that `ASSUMED` says."""

    def __init__(self, size: int, turns: dict[tuple[str, str], int]) -> None:
        self.size, self.now = size, 0.0
        self.starting, self.working = 0.0, 0.0
        """Replica-seconds of starts and swaps, and of steps."""
        self._turns, self._queue = turns, list[tuple[float, int, float, int, Event]]()
        self._engine: dict[int, Order] = {}
        self._left: dict[int, dict[Key, float]] = {}
        self._jobs: dict[int, Job] = {}
        self._rng, self._count = np.random.default_rng(0), 0

    def turn_to(self, replica: int, job: Job) -> None:
        """Another engine, or the last one."""
        order = Work(job).order
        last = self._engine.get(replica)
        how = "start" if last is None else expected(last, order)
        seconds = {"start": ASSUMED[job.target.name].start, "swap": SWAP, "same": 0.0}[how]
        self._engine[replica], self._jobs[replica], self._left[replica] = order, job, {}
        self._later(seconds, replica, Ready(cast(Any, None), how, 0))

    def advance(self, replica: int, keys: Sequence[Key]) -> None:
        """Until the first of the conversations that the engine runs at once is done."""
        left, job = self._left[replica], self._jobs[replica]
        for key in keys:
            answers = np.minimum(LONGEST, self._rng.lognormal(np.log(TOKENS), SPREAD, self._turns[key[:2]]))
            left[key] = float(answers.sum()) / TAU
        running = list(left)[: job.spec.batch]
        steps = min(left[key] for key in running)
        for key in running:
            left[key] -= steps
        over = [key for key in running if left[key] <= 0]
        for key in over:
            del left[key]
        seconds = steps * ASSUMED[job.target.name].step
        lines = [dict(zip(("suite", "conversation", "seed"), key, strict=True)) for key in over]
        self._later(seconds, replica, Report(lines, Segment(conversations=0, tokens=0, seconds=0.0, counters=None)))

    def next(self, seconds: float) -> tuple[int, Event]:
        """The event that comes first."""
        self.now, _, began, replica, event = heapq.heappop(self._queue)
        self._spend(event, began)
        return replica, event

    def end(self) -> None:
        """Count what goes on."""
        for _, _, began, _, event in self._queue:
            self._spend(event, began)

    def _spend(self, event: Event, began: float) -> None:
        if isinstance(event, Ready):
            self.starting += self.now - began
        else:
            self.working += self.now - began

    def _later(self, seconds: float, replica: int, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + seconds, self._count, self.now, replica, event))


class Unstored(Work):
    """A run of which nothing is written."""

    def open(self) -> None:
        """No store."""
        self.store = cast(Any, SimpleNamespace(done=(), counts={}))

    def begin(self, replica: int, ready: Ready) -> None:
        """Whatever the engine."""
        self._meta, self._stretch[replica] = cast(Any, self), 0

    def take(self, replica: int, report: Report) -> None:
        """Forget what is finished."""
        self.in_hand[replica] -= {(line["suite"], line["conversation"], line["seed"]) for line in report.lines}

    def leave(self, replica: int) -> None:
        """Nothing to write."""
        self.in_hand.pop(replica, None)
        self._stretch.pop(replica, None)

    def close(self) -> None:
        """Likewise."""
        self.store, self.done = None, True

    finish = close


def simulate(jobs: list[Job], gpus: int) -> dict[str, Any]:
    """Hours of a cluster of so many GPUs, for those of the runs whose engines fit it."""
    fitting = [job for job in jobs if ASSUMED[job.target.name].gpus <= gpus]
    turns = {
        (suite.name, one.id): len(one.turns) for job in fitting for suite in job.suites for one in suite.conversations
    }
    total = {"gpus": gpus, "runs": len(fitting), "targets": len({job.target.name for job in fitting})}
    hours = starting = working = offered = 0.0
    starts = swaps = 0
    for need in sorted({ASSUMED[job.target.name].gpus for job in fitting}, reverse=True):
        group = [job for job in fitting if ASSUMED[job.target.name].gpus == need]
        clock = Clock(gpus // need, turns)
        hand_out = HandOut(group, clock)
        hand_out.works = [Unstored(job) for job in group]
        assert sum(1 for _ in hand_out.run()) == len(group)
        clock.end()
        hours += clock.now / 3600
        starting, working = starting + clock.starting * need, working + clock.working * need
        offered += clock.now * gpus
        starts, swaps = starts + hand_out.how["start"], swaps + hand_out.how["swap"]
    shares = {"starting": starting / offered, "generating": working / offered}
    return total | {"starts": starts, "swaps": swaps, "hours": hours, "gpu_hours": offered / 3600} | shares


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", default="paper")
    parser.add_argument("--gpus", default="1,8,64")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # What a GPU's own choice of the runner is counted as: V2's engines draw their drafts in one way.
    v2 = {"runner": "v2"}
    prepared = sweeps.prepare_sweep(sweeps.read_sweep_file(arguments.sweep), changes=v2, load=suites.load_or_count)
    jobs = [cell.job for cell in prepared.cells]
    rows = [simulate(jobs, int(gpus)) for gpus in arguments.gpus.split(",")]
    heads = ("GPUs", "runs", "engine starts", "swaps", "hours", "GPU-hours", "starting", "generating")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for row in rows:
        print(
            f"| {row['gpus']} | {row['runs']} of {len(jobs)} | {row['starts']} | {row['swaps']} | {row['hours']:.1f} | "
            f"{row['gpu_hours']:.0f} | {100 * row['starting']:.0f} % | {100 * row['generating']:.0f} % |"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
