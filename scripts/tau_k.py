"""tau against K: is the curve from one run at the largest K the same as separate runs? `python scripts/tau_k.py`.

Runs two drafters of the zoo at several K (the demo prompts, T=1, sampled drafts), stores each run below --runs, and
writes results/statistics/tau_k.csv: a row per drafter and K with tau of the separate run, tau from the steps of the run
at the largest K (`speceval.show.plots.tau_k`), and their difference in percent, paired by conversation; and the figure
docs/images/tau-k.png. Runs that are there already are not made again. Needs vLLM; ten minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from speceval.api.measuring import measure
from speceval.estimate.statistics import paired_ratio_difference
from speceval.files import write_whole
from speceval.measure.job import prepare
from speceval.show import plots
from speceval.show.plots import tau_k
from speceval.store import StoredRun

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "statistics" / "tau_k.csv"
FIGURE = ROOT / "docs" / "images" / "tau-k.png"
DRAFTERS = {"lk-eagle3": (1, 2, 3, 5, 7), "kl-medusa": (1, 2, 3, 4, 6)}
"""MEDUSA has six heads."""
SEEDS = 50


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "results" / "tau_k")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    drawn: list[StoredRun] = []
    for draft, ks in DRAFTERS.items():
        runs = {k: measured(draft, k, options.runs) for k in ks}
        rows += table(draft, runs)
        drawn += runs.values()
    write_whole(OUT, pd.DataFrame(rows).to_csv(index=False, float_format="%.5f"))
    plots.save(plots.draw("tau-k", drawn).figure, FIGURE)
    print(pd.DataFrame(rows).to_string())


def measured(draft: str, k: int, root: Path) -> StoredRun:
    """The run of one drafter at one K."""
    job = prepare(
        target="zoo",
        draft=draft,
        k=k,
        temperature=1.0,
        suite_names=["demo"],
        seeds=tuple(range(SEEDS)),
        batch=256,
        max_tokens=64,
        out=root / f"{draft}-k{k}",
    )
    run: StoredRun = measure(job)
    return run


def table(draft: str, runs: dict[int, StoredRun]) -> list[dict[str, Any]]:
    """Rows for every K: the separate run, the curve of the largest K, their relative difference."""
    largest = max(runs)
    long = runs[largest]
    curve = tau_k.curve(long.steps, largest)
    from_long = tau_k.totals(long.steps, largest)
    rows = []
    for k, run in sorted(runs.items()):
        own = tau_k.totals(run.steps, k)
        separate = tau_k.curve(run.steps, k)[-1]
        paired = paired_ratio_difference(own[k], own["steps"], from_long[k], from_long["steps"])
        rows.append(
            {
                "draft": draft,
                "vllm": run.meta.fingerprint.engine.vllm,
                "seeds": SEEDS,
                "conversations": len(own),
                "k": k,
                "steps": int(own["steps"].sum()),
                "tau": separate["value"],
                "low": separate["low"],
                "high": separate["high"],
                "curve_k": largest,
                "curve": curve[k - 1]["value"],
                "curve_low": curve[k - 1]["low"],
                "curve_high": curve[k - 1]["high"],
                "difference_percent": paired.relative_percent.value,
                "difference_low": paired.relative_percent.low,
                "difference_high": paired.relative_percent.high,
            }
        )
    return rows


if __name__ == "__main__":
    main()
