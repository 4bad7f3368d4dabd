"""`make real`: the stored drafters of SmolLM2-135M on a slice of the benchmarks, T = 0 and T = 1, with replay.

    python scripts/real.py [--data-dir DIR] [--limit 4] [--out results/real]

Six runs of one engine start each: both drafters at both temperatures, and at T = 1 both on one text, the answers of
the KL drafter's run. Prints the tables and writes OUT/report.html. What is finished is read back, not measured again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console

import speceval
from speceval import Run
from speceval.errors import UserError

TARGET = "smollm2-135m-q4"
DRAFTERS = ("kl-eagle3", "lk-eagle3")
TEMPERATURES = (0.0, 1.0)
K = 5
MAX_TOKENS = 64


def measure(out: Path, data_dir: str | None, limit: int) -> tuple[dict[tuple[str, float], Run], list[Run]]:
    """Free runs by drafter and temperature, and the replays of the first drafter's text at T = 1."""
    free = {
        (draft, temperature): speceval.run(
            TARGET,
            draft,
            temperature=temperature,
            k=K,
            limit=limit,
            max_tokens=MAX_TOKENS,
            data_dir=data_dir,
            out=out / f"{draft}-T{temperature:g}",
            progress=True,
        )
        for temperature in TEMPERATURES
        for draft in DRAFTERS
    }
    text = free[DRAFTERS[0], 1.0]
    replays = [
        speceval.run(
            TARGET,
            draft,
            temperature=1.0,
            k=K,
            replay=text,
            data_dir=data_dir,
            out=out / f"{draft}-T1-replay",
            progress=True,
        )
        for draft in DRAFTERS
    ]
    return free, replays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", default=os.environ.get("SPECEVAL_DATA_DIR"))
    parser.add_argument("--limit", type=int, default=4, help="conversations of each suite")
    parser.add_argument("--out", type=Path, default=Path("results/real"))
    options = parser.parse_args()
    console = Console()
    try:
        free, replays = measure(options.out, options.data_dir, options.limit)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    for temperature in TEMPERATURES:
        console.print(f"\nT = {temperature:g}, K = {K}, target {TARGET}", style="bold")
        console.print(speceval.compare(*(free[draft, temperature] for draft in DRAFTERS)))
    console.print("\nT = 1 again, both drafters on the same text", style="bold")
    console.print(speceval.compare(*replays))
    for run in (*free.values(), *replays):
        for problem in run.meta.problems:
            console.print(f"PROBLEM in {run.directory}: {problem}", markup=False)
    page = speceval.report([free[draft, 1.0] for draft in DRAFTERS], options.out / "report.html")
    console.print(f"\nreport: {page}; every run: speceval show {options.out}/<run>", markup=False)


if __name__ == "__main__":
    main()
