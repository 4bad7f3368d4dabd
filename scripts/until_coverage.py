"""What does `speceval run --until` save, and do its intervals still hold? Simulated, so that the truth is known.

Conversations are drawn from the populations of scripts/coverage.py, a suite's worth at a time, in order. Four rules
look at the growing suite and stop at the target:

    naive       the ordinary 95 % interval at every look
    corrected   speceval.estimate.stopping: error spent by information
    constant    one critical value at every look, for all looks of the suite together (Pocock 1977)
    sequence    asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, arXiv 2103.06476)

    python scripts/until_coverage.py [--replications 1500] [--out results/statistics/until.csv]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from coverage import SCENARIOS, Counts, population, terms
from numpy.typing import NDArray
from scipy.special import ndtr

from speceval.estimate.statistics import Estimates, Interval, estimate_bounds, paired_estimates, ratio_estimates
from speceval.estimate.stopping import ERROR, FIRST_LOOK, decide, grid
from speceval.files import write_whole

SIZES = (80, 164, 1319)
TARGETS = (0.005, 0.01, 0.02, 0.05)
FIRST_LOOKS = (40, FIRST_LOOK)
Floats = NDArray[np.float64]


def tau_looks(run: Counts, picked: NDArray[np.int64], looks: list[int]) -> Estimates:
    """tau after each look; fields of shape (replications, looks). picked: conversations of each replication's suite."""
    x, y = terms(run)["tau"]
    found = [ratio_estimates(x[picked[:, :n]], y[picked[:, :n]]) for n in looks]
    return Estimates(*(np.stack(fields, axis=1) for fields in zip(*found, strict=True)))


def paired_looks(a: Counts, b: Counts, picked: NDArray[np.int64], looks: list[int]) -> Estimates:
    """The same of 100 (tau_b / tau_a - 1), paired by conversation."""
    (a_x, a_y), (b_x, b_y) = terms(a)["tau"], terms(b)["tau"]
    found = []
    for n in looks:
        of_look = picked[:, :n]
        at = paired_estimates(a_x[of_look], a_y[of_look], b_x[of_look], b_y[of_look], relative=True)
        found.append(at._replace(df=at.cautious_df))
    return Estimates(*(np.stack(fields, axis=1) for fields in zip(*found, strict=True)))


def constant_confidence(looks: list[int], draws: int = 200_000) -> float:
    """Nominal confidence so that all looks together miss with chance ERROR, by simulating the random walk."""
    rng = np.random.default_rng(0)
    steps = np.sqrt(np.diff(looks, prepend=0)) * rng.standard_normal((draws, len(looks)))
    largest = np.abs(np.cumsum(steps, axis=1) / np.sqrt(looks)).max(axis=1)
    return float(2 * ndtr(np.quantile(largest, 1 - ERROR)) - 1)


def sequence_confidence(looks: list[int]) -> Floats:
    """Nominal confidence of each look in the confidence sequence (theorem 2.2), tightest at a quarter of the suite."""
    n = np.asarray(looks, float)
    rho2 = 8.2 / max(looks[-1] / 4, looks[0])  # n ρ² = 8.2 minimises the boundary for α = 0.05
    boundary = np.sqrt((n * rho2 + 1) / (n * rho2) * (np.log(n * rho2 + 1) - 2 * np.log(ERROR)))
    return np.asarray(2 * ndtr(boundary) - 1)


def fixed_rule(found: Estimates, truth: float, confidences: Floats, target: float, whole: float | None) -> Floats:
    """Rows (look that stops, holds there, holds at all looks so far) of a rule with given confidences.

    whole: of a difference what 100 % is (`decide`).
    """
    bounds = [
        estimate_bounds(of(found, slice(None), j), level, cautious=whole is not None)
        for j, level in enumerate(confidences)
    ]
    low, high = (np.stack(side, axis=1) for side in zip(*bounds, strict=True))
    there = (high - low) / 2 <= target * (found.value if whole is None else whole)
    there[:, -1] = True
    stop = there.argmax(axis=1)
    holds = (low <= truth) & (truth <= high)
    so_far = holds | (np.arange(len(confidences)) > stop[:, None])
    return np.stack([stop, holds[np.arange(len(stop)), stop], so_far.all(axis=1)], axis=1).astype(float)


def corrected_rule(found: Estimates, truth: float, looks: list[int], target: float, whole: float | None) -> Floats:
    """The same rows of `speceval.estimate.stopping.decide`."""
    rows = np.empty((len(found.value), 3))
    for i in range(len(rows)):
        estimates = [interval(found, i, j, whole is not None) for j in range(len(looks))]
        decision = decide(dict(zip(looks, estimates, strict=True)).__getitem__, looks[-1], looks, target, whole)
        holds = [
            low <= truth <= high
            for j, look in enumerate(decision.looks)
            if look.confidence
            for low, high in [estimate_bounds(of(found, i, j), look.confidence, whole is not None)]
        ]
        rows[i] = len(decision.looks) - 1, holds[-1], all(holds)
    return rows


def of(found: Estimates, replication: int | slice, look: int) -> Estimates:
    """One look."""
    return Estimates(*(values[replication, look] for values in found))


def interval(found: Estimates, replication: int, look: int, cautious: bool) -> Interval:
    """One look of one replication, as `decide` takes it."""
    value, se, clusters, df, skew, *_ = (float(field) for field in of(found, replication, look))
    return Interval(value, None, None, se, int(clusters), df, skew, cautious=cautious)


def rules(found: Estimates, truth: float, looks: list[int], whole: float | None) -> Iterator[dict[str, Any]]:
    """One row per target and rule."""
    levels = {
        "naive": np.full(len(looks), 1 - ERROR),
        "constant": np.full(len(looks), constant_confidence(looks)),
        "sequence": sequence_confidence(looks),
    }
    for target in TARGETS:
        outcomes = {name: fixed_rule(found, truth, level, target, whole) for name, level in levels.items()}
        outcomes["corrected"] = corrected_rule(found, truth, looks, target, whole)
        for rule, rows in outcomes.items():
            yield {
                "target": target,
                "rule": rule,
                "looks": len(looks),
                "mean_conversations": np.asarray(looks)[rows[:, 0].astype(int)].mean(),
                "stopped_early": (rows[:, 0] < len(looks) - 1).mean(),
                "coverage_at_stop": rows[:, 1].mean(),
                "coverage_all_looks": rows[:, 2].mean(),
                "replications": len(rows),
            }


def table(replications: int) -> pd.DataFrame:
    """One row per scenario, quantity, suite size, first look, target and rule."""
    rows: list[dict[str, Any]] = []
    for scenario, shape in SCENARIOS.items():
        a, b = population(shape, 20_000, seed=1)
        (a_x, a_y), (b_x, b_y) = terms(a)["tau"], terms(b)["tau"]
        tau_a, tau_b = a_x.sum() / a_y.sum(), b_x.sum() / b_y.sum()
        for size in SIZES:
            for first in FIRST_LOOKS:
                looks = grid(size, first)
                picked = np.random.default_rng(2).integers(len(a_y), size=(replications, size))
                found: dict[str, tuple[Estimates, float, float | None]] = {
                    "tau": (tau_looks(a, picked, looks), tau_a, None)
                }
                if first == FIRST_LOOK:
                    found["difference"] = (paired_looks(a, b, picked, looks), 100 * (tau_b / tau_a - 1), 100.0)
                head = {"scenario": scenario, "size": size, "first_look": first}
                for quantity, (estimates, truth, whole) in found.items():
                    rows += [head | {"quantity": quantity} | row for row in rules(estimates, truth, looks, whole)]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--replications", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("results/statistics/until.csv"))
    args = parser.parse_args()
    found = table(args.replications)
    write_whole(args.out, found.to_csv(index=False, float_format="%.5g"))
    shown = found.pivot_table(
        index=["quantity", "scenario", "size", "target", "first_look"],
        columns="rule",
        values=["mean_conversations", "coverage_at_stop", "coverage_all_looks"],
    )
    print(shown.round(3).to_string())
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
