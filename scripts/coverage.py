"""How often do speceval.estimate.statistics' intervals hold the true value? Simulated, so that the truth is known.

A large population of conversations is simulated once per scenario; its ratio of sums is the truth. Then G
conversations are drawn with replacement, many times, and each draw's 95 % interval is asked whether it holds
the truth.

    python scripts/coverage.py [--replications 20000] [--out results/statistics/coverage.csv]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit

from speceval.estimate.statistics import effective_bounds, estimate_bounds, paired_ratio_difference, ratio_estimates
from speceval.files import write_whole

K = 5
CLUSTERS = (5, 10, 20, 40, 80, 164, 1319)
Floats = NDArray[np.float64]
Counts = dict[str, Floats]


@dataclass(frozen=True)
class Scenario:
    """How conversations differ."""

    acceptance: tuple[float, float]
    """Beta parameters of a conversation's acceptance rate per draft token."""
    length_sigma: float
    """Spread of log output length: 0.6 is chat-like, 1.2 lets a few conversations dominate."""


SCENARIOS = {
    "even": Scenario((6, 4), 0.6),
    "long-tailed lengths": Scenario((6, 4), 1.2),
    "poor drafter": Scenario((0.7, 9), 0.6),
}


def population(scenario: Scenario, conversations: int, seed: int) -> tuple[Counts, Counts]:
    """Counts per conversation of two runs a and b over the same conversations, b's drafter a bit better.

    Each conversation has one or two requests with lengths of their own; a run decodes a request until its
    length is reached, so higher acceptance means fewer steps. Every request switches between easy and hard
    stretches (correlated steps), and a fifth of the steps draft fewer than K tokens. Returned arrays have
    shape (conversations,).
    """
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(conversations), np.flatnonzero(rng.random(conversations) < 0.5)])
    rate = logit(np.clip(rng.beta(*scenario.acceptance, conversations), 1e-4, 1 - 1e-4))[owner]
    length = np.clip(np.exp(rng.normal(4.2, scenario.length_sigma, len(owner))), 8, 1024).astype(int)
    better = rng.normal(0.15, 0.15, conversations)[owner]
    return decode(rate, length, owner, rng), decode(rate + better, length, owner, rng)


def decode(rate: Floats, length: NDArray[np.int_], owner: NDArray[np.int_], rng: np.random.Generator) -> Counts:
    """Run all requests step by step; per request: logit acceptance rate, output length, conversation."""
    conversations, requests = int(owner.max()) + 1, len(owner)
    counts = {name: np.zeros(requests) for name in ("steps", "drafted", "accepted", "committed")}
    at = np.zeros((3, K, requests))  # accepted, drafted, reached per position
    easy = rng.random(requests) < 0.5
    left = length - 1  # the prefill emits the first token
    while len(on := np.flatnonzero(left > 0)):
        easy[on] ^= rng.random(len(on)) < 0.05
        drafted = np.where(rng.random(len(on)) < 0.2, rng.integers(1, K, len(on)), K)
        token_rate = expit(rate[on] + np.where(easy[on], 0.8, -0.8))
        run = np.floor(np.log(rng.random(len(on))) / np.log(token_rate))  # accepted tokens in a row
        accepted = np.minimum(run, drafted).astype(int)
        committed = np.minimum(accepted + 1, left[on])
        left[on] -= committed
        for name, values in (("drafted", drafted), ("accepted", accepted), ("committed", committed)):
            counts[name][on] += values
        counts["steps"][on] += 1
        for j in range(1, K + 1):
            at[0, j - 1, on] += accepted >= j
            at[1, j - 1, on] += drafted >= j
            at[2, j - 1, on] += (accepted >= j - 1) & (drafted >= j)
    own_tau = 1 + counts["accepted"] / counts["steps"]
    for j in range(1, K + 1):
        for name, values in zip(("accepted", "drafted", "reached"), at[:, j - 1], strict=True):
            counts[f"{name}_{j}"] = values
    counts |= {"requests": np.ones(requests), "own_tau": own_tau}
    return {name: np.bincount(owner, values, conversations).astype(float) for name, values in counts.items()}


def terms(counts: Counts) -> dict[str, tuple[Floats, Floats]]:
    """Numerator and denominator per conversation of each estimator."""
    rates = {
        f"{kind}_{j}": (counts[f"accepted_{j}"], counts[f"{below}_{j}"])
        for kind, below in (("unconditional", "drafted"), ("conditional", "reached"))
        for j in (1, K)
    }
    return {
        "tau": (counts["steps"] + counts["accepted"], counts["steps"]),
        "tau_paper": (counts["drafted"] + K * counts["accepted"], counts["drafted"]),
        "tau_committed": (counts["committed"], counts["steps"]),
        "tau_request_mean": (counts["own_tau"], counts["requests"]),
    } | rates


def draws(rng: np.random.Generator, size: int, clusters: int, replications: int) -> Iterator[NDArray[np.int64]]:
    """Indices of the drawn conversations, shape (replications, clusters), in blocks of a million or so."""
    block = max(1, 1_000_000 // clusters)
    for done in range(0, replications, block):
        yield rng.integers(size, size=(min(block, replications - done), clusters))


def coverage(x: Floats, y: Floats, clusters: int, replications: int, seed: int) -> list[dict[str, Any]]:
    """Share of draws whose 95 % interval holds the population's ratio, lies below it, above it; per method.

    x, y: shape (population,). Methods: skew (in use for lengths) and student (value ± t_{G-1} se); for rates also
    effective (Korn and Graubard, in use for rates) and logit (student on the logit scale). Draws with fewer than two
    informative conversations have no interval: left out.
    """
    truth = x.sum() / y.sum()
    rng = np.random.default_rng(seed)
    blocks: dict[str, list[Floats]] = {}
    for picked in draws(rng, len(y), clusters, replications):
        found = ratio_estimates(x[picked], y[picked])
        half = stdtrit(found.clusters - 1, 0.975) * found.se
        bounds = {"skew": estimate_bounds(found), "student": (found.value - half, found.value + half)}
        if truth < 1:
            with np.errstate(divide="ignore", invalid="ignore"):
                slope = found.value * (1 - found.value)
                bounds["logit"] = tuple(expit(logit(found.value) + side * half / slope) for side in (-1, 1))
            bounds["effective"] = effective_bounds(found, y[picked].sum(-1))
        for method, pair in bounds.items():
            blocks.setdefault(method, []).append(np.stack(pair)[:, found.clusters > 1])
    return [row(method, clusters, truth, *np.concatenate(pairs, axis=1)) for method, pairs in blocks.items()]


def row(method: str, clusters: int, truth: float, low: Floats, high: Floats) -> dict[str, Any]:
    """How the bounds of many draws, shape (replications,), lie around the truth; undefined bounds miss it."""
    return {
        "method": method,
        "clusters": clusters,
        "truth": truth,
        "coverage": ((low <= truth) & (truth <= high)).mean(),
        "interval_below": (high < truth).mean(),
        "interval_above": (low > truth).mean(),
        "replications": len(low),
    }


def paired_coverage(a: Counts, b: Counts, clusters: int, replications: int, seed: int) -> list[dict[str, Any]]:
    """Coverage of the paired difference of tau, absolute and relative, through the public function."""
    a_x, a_y, b_x, b_y = *terms(a)["tau"], *terms(b)["tau"]
    tau_a, tau_b = a_x.sum() / a_y.sum(), b_x.sum() / b_y.sum()
    truths = {"tau difference": tau_b - tau_a, "tau relative percent": 100 * (tau_b / tau_a - 1)}
    rng = np.random.default_rng(seed)
    bounds = np.empty((replications, 2, 2))
    for i in range(replications):
        picked = rng.integers(len(a_y), size=clusters)
        paired = paired_ratio_difference(a_x[picked], a_y[picked], b_x[picked], b_y[picked])
        bounds[i] = [(e.low, e.high) for e in (paired.difference, paired.relative_percent)]
    return [
        {"estimator": name} | row("skew", clusters, truth, bounds[:, j, 0], bounds[:, j, 1])
        for j, (name, truth) in enumerate(truths.items())
    ]


def table(replications: int, conversations: int = 20_000) -> pd.DataFrame:
    """One row per scenario, estimator, method and number of conversations."""
    parts = []
    for name, scenario in SCENARIOS.items():
        a, b = population(scenario, conversations, seed=1)
        rows = []
        for clusters in CLUSTERS:
            count = replications if clusters <= 164 else max(replications // 4, 1)
            for estimator, (x, y) in terms(a).items():
                rows += [{"estimator": estimator} | r for r in coverage(x, y, clusters, count, seed=2)]
            rows += paired_coverage(a, b, clusters, count // 2, seed=3)
        parts.append(pd.DataFrame(rows).assign(scenario=name))
    return pd.concat(parts, ignore_index=True)


def write(found: pd.DataFrame, path: Path) -> None:
    """Write a table of results, whole or not at all."""
    write_whole(path, found.to_csv(index=False, float_format="%.5g"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--replications", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("results/statistics/coverage.csv"))
    args = parser.parse_args()
    found = table(args.replications)
    write(found[["scenario", *found.columns.drop("scenario")]], args.out)
    keys = ["scenario", "estimator", "method"]
    print(found.pivot_table(index=keys, columns="clusters", values="coverage").round(3).to_string())
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
