"""What Rao-Blackwell saves on the zoo: `python scripts/rao_blackwell.py`.

For a weak and a strong drafter, at K = 4 and 7, T = 1: the demo's prompts with many seeds, each seed a replicate of the
whole run. Of tau and of every position: the mean of (counts - Rao-Blackwell) over the replicates with its z, and the
ratio of the variances over replicates, counts over Rao-Blackwell, with a 95 % bootstrap interval over replicates.
Writes results/statistics/rao_blackwell.csv.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from speceval.estimate import rao_blackwell
from speceval.files import write_whole
from speceval.measure import launch
from speceval.measure.job import prepare
from speceval.measure.output import output_to
from speceval.show import progress as display
from speceval.store import StoredRun

RESULT = Path("results/statistics/rao_blackwell.csv")
DRAFTERS = {"weak": "kl-eagle3", "strong": "lk-mtp"}
"""Drafters of the zoo with a small and a large tau that can draft 7 tokens."""
DEPTHS = (4, 7)
SEEDS = 40
REPLICATES = 4000


def main() -> None:
    """Measure and write the table."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for strength, draft in DRAFTERS.items():
            for k in DEPTHS:
                run = measure(draft, k, Path(scratch) / f"{draft}-{k}")
                rows += [{"drafter": draft, "strength": strength, "k": k, **row} for row in judge(run, k)]
                print(pd.DataFrame(rows).tail(k + 1).to_string(index=False), file=sys.stderr)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_whole(RESULT, pd.DataFrame(rows).to_csv(index=False, float_format="%.5g"))


def measure(draft: str, k: int, directory: Path) -> StoredRun:
    """One run of all seeds."""
    job = prepare(
        target="zoo",
        draft=draft,
        temperature=1.0,
        suite_names=["demo"],
        k=k,
        seeds=tuple(range(SEEDS)),
        batch=128,
        out=directory,
    )
    with output_to(directory.with_suffix(".log")):
        return launch.run(job, display.watcher(Console(file=sys.stderr)), output_to)


def judge(run: StoredRun, k: int) -> list[dict[str, object]]:
    """One row for tau and one for each position."""
    steps = run.steps[run.steps["drafted"] > 0]
    chances = rao_blackwell.survival(steps)
    seed, ids = pd.factorize(steps["seed"])
    size = np.bincount(seed, minlength=len(ids))
    counted = steps["accepted"].to_numpy()[:, None] >= np.arange(1, k + 1)
    means = [
        np.stack([np.bincount(seed, column, minlength=len(ids)) / size for column in table.T], axis=1)
        for table in (counted.astype(float), np.nan_to_num(chances))
    ]
    rows = []
    for name, counts, expected in [
        ("tau", means[0].sum(1), means[1].sum(1)),
        *((f"u_{j}", means[0][:, j - 1], means[1][:, j - 1]) for j in range(1, k + 1)),
    ]:
        difference = counts - expected
        error = difference.std(ddof=1) / np.sqrt(len(ids))
        ratio = counts.var(ddof=1) / expected.var(ddof=1)
        draws = np.random.default_rng(0).integers(0, len(ids), (REPLICATES, len(ids)))
        boot = counts[draws].var(axis=1, ddof=1) / expected[draws].var(axis=1, ddof=1)
        low, high = np.quantile(boot, [0.025, 0.975])
        rows.append(
            {
                "quantity": name,
                "seeds": len(ids),
                "steps": len(steps),
                "counts": counts.mean() + (name == "tau"),
                "rao_blackwell": expected.mean() + (name == "tau"),
                "z": difference.mean() / error,
                "variance_ratio": ratio,
                "low": low,
                "high": high,
            }
        )
    return rows


if __name__ == "__main__":
    main()
