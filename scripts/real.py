"""`make real`: the stored drafters of SmolLM2-135M on a slice of the benchmarks, T = 0 and T = 1, with replay.

    python scripts/real.py [--study] [--limit 4] [--out results/real] [--data-dir DIR]

Both EAGLE-3 drafters at both temperatures, and at T = 1 both on one text, the answers of the KL drafter's run: six runs
and three engines, for one engine's drafters are exchanged in it. Prints the tables and writes OUT/report.html. What is
finished is read back, not measured again. --study: every stored drafter, more conversations, and the replays at K = 7,
into results/smollm2, which docs/study.md is made of.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import speceval
from speceval.errors import UserError
from speceval.measure import launch
from speceval.measure.job import Job, prepare, stored
from speceval.measure.kept import Kept
from speceval.measure.output import terminal
from speceval.measure.replay import inherited
from speceval.measure.starting import Starting
from speceval.show import progress
from speceval.store import StoredRun

ROOT = Path(__file__).resolve().parent.parent
TARGET = "smollm2-135m-q4"
K = 5
MAX_TOKENS = 64


@dataclass(frozen=True)
class Plan:
    """What is measured: free runs at K, one temperature after the other, then replays of the first one at T = 1.

    n-gram comes last: with vLLM 0.32 no second engine starts in a process that has imported numba.
    """

    limit: int
    """Conversations of each suite."""
    free: dict[float, tuple[str, ...]]
    """Drafters by temperature."""
    replayed: dict[str, int]
    """K of each drafter that drafts along the text of the first of `free[1]`."""
    out: Path
    ngram: bool = False
    """Whether n-gram is measured as well, at temperature 0."""


DRAFTERS = ("kl-eagle3", "lk-eagle3")
SLICE = Plan(4, {0.0: DRAFTERS, 1.0: DRAFTERS}, dict.fromkeys(DRAFTERS, K), Path("results/real"))
STUDY = Plan(
    20,
    {1.0: DRAFTERS, 0.0: DRAFTERS},
    dict.fromkeys((*DRAFTERS, "tv-eagle3", "lk-alpha-eagle3"), 7) | dict.fromkeys(("kl-medusa", "lk-medusa"), K),
    ROOT / "results" / "smollm2",
    ngram=True,
)


def name(draft: str, temperature: float, replayed: bool = False) -> str:
    """A run's directory."""
    return f"{draft}-T{temperature:g}" + ("-replay" if replayed else "")


def jobs(plan: Plan, data_dir: Path | None) -> Iterator[Job]:
    """The runs in their order. A replay's can be made only when the run of its text is finished."""
    common: dict[str, Any] = {"target": TARGET, "data_dir": data_dir}

    def free(draft: str, temperature: float) -> Job:
        size: dict[str, Any] = {
            "k": K,
            "limit": plan.limit,
            "max_tokens": MAX_TOKENS,
            "out": plan.out / name(draft, temperature),
        }
        return prepare(draft=draft, temperature=temperature, suite_names=[], **size, **common)

    for temperature, drafters in plan.free.items():
        yield from (free(draft, temperature) for draft in drafters)
    text = plan.out / name(plan.free[1.0][0], 1.0)
    for draft, k in plan.replayed.items():
        fixed = inherited(text, TARGET, draft, {})
        suites = list(fixed.pop("suites"))
        yield prepare(draft=draft, k=k, suite_names=suites, out=plan.out / name(draft, 1.0, True), **common, **fixed)
    if plan.ngram:
        yield free("ngram", 0.0)


def measure(plan: Plan, data_dir: Path | None) -> dict[str, StoredRun]:
    """Every run by its directory's name. An engine takes over from run to run where it can."""
    command = ("python", "scripts/real.py", *(["--study"] if plan.replayed == STUDY.replayed else []))
    runs: dict[str, StoredRun] = {}
    with terminal() as console, closing(Kept()) as kept:
        for job in jobs(plan, data_dir):
            runs[job.directory.name] = _measured(replace(job, command=command), kept, console)
    return runs


def _measured(job: Job, kept: Kept, console: Console) -> StoredRun:
    known = stored(job)
    if known is not None and known.complete:
        console.print(f"{job.directory.name}: measured before", markup=False)
        return known
    starting = Starting(console, job.spec.engine)

    def log(path: Path) -> AbstractContextManager[None]:
        console.print(f"{job.directory.name}: the engine's log: {path}", markup=False, soft_wrap=True)
        return starting.log(path)

    return launch.run(job, starting.until(progress.watcher(console)), log, kept.use)


def show(plan: Plan, runs: dict[str, StoredRun], console: Console) -> None:
    """Tables, problems, and the report's place."""

    def pair(drafters: Sequence[str], temperature: float, replayed: bool = False) -> list[speceval.Run]:
        return [speceval.Run.of(runs[name(draft, temperature, replayed)]) for draft in drafters]

    for temperature in sorted(plan.free):
        console.print(f"\nT = {temperature:g}, K = {K}, target {TARGET}", style="bold")
        console.print(speceval.compare(*pair(DRAFTERS, temperature)))
    console.print("\nT = 1 again, both drafters on the same text", style="bold")
    console.print(speceval.compare(*pair(DRAFTERS, 1.0, True)))
    for run in runs.values():
        for problem in run.meta.problems:
            console.print(f"PROBLEM in {run.directory}: {problem}", markup=False)
    page = speceval.report(pair(DRAFTERS, 1.0), plan.out / "report.html")
    console.print(f"\nreport: {page}; every run: speceval show {plan.out}/<run>", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", action="store_true", help="all drafters, for docs/study.md")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SPECEVAL_DATA_DIR"))
    parser.add_argument("--limit", type=int, help="conversations of each suite")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    # Python puts this folder first: numba, which n-gram drafting imports, would take coverage.py here for the package.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    plan = STUDY if options.study else SLICE
    plan = replace(plan, limit=options.limit or plan.limit, out=options.out or plan.out)
    try:
        runs = measure(plan, options.data_dir and Path(options.data_dir))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on") from None
    show(plan, runs, Console())


if __name__ == "__main__":
    main()
