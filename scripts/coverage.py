"""How often do speceval.estimate.statistics' intervals hold the true value? Simulated, so that the truth is known.

A large population of conversations is simulated once per scenario; its ratio of sums is the truth. Then G
conversations are drawn with replacement, many times, and each draw's 95 % interval is asked whether it holds
the truth. `hard_cases` does the same with the populations of scripts/populations.py: answers that loop, poor drafters,
differences that few prompts carry, several seeds; and asks whether the output would have warned. `three_suites` counts
tables of three suites and two drafters in which any difference is starred though there is none.

    python scripts/coverage.py [--replications 20000] [--only PART …] [--out results/statistics/coverage.csv]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import in_parts
import numpy as np
import populations
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtr, stdtrit

from speceval.estimate.statistics import (
    LEAST_EFFECTIVE,
    Estimates,
    effective_bounds,
    effective_clusters,
    estimate_bounds,
    mirrored,
    paired_estimates,
    ratio_estimates,
    tail,
)

K = 5
CLUSTERS = (5, 10, 20, 40, 80, 164, 1319)
HARD_CLUSTERS = (10, 20, 40, 80, 164)
HARD_REPLICATIONS = 2500
SUITES = {"chat": 80, "long answers easier": 164, "tau 1.1": 80}
"""Three suites of one table: population and conversations of each."""
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
    effective (Korn and Graubard, in use for rates), the same without regard to the terms' tails (effective, before) and
    logit (student on the logit scale). Draws with fewer than two informative conversations have no interval: left out.
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
            bounds["effective, before"] = effective_bounds(without_tails(found), y[picked].sum(-1))
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


def without_tails(found: Estimates) -> Estimates:
    """Estimates whose degrees of freedom know the conversations' weights alone."""
    return found._replace(df_terms=np.full_like(found.df, np.inf))


def paired_coverage(a: Counts, b: Counts, clusters: int, replications: int, seed: int) -> list[dict[str, Any]]:
    """Coverage of the paired difference of tau, absolute and relative: cautious (in use) and skew (before)."""
    a_x, a_y, b_x, b_y = *terms(a)["tau"], *terms(b)["tau"]
    tau_a, tau_b = a_x.sum() / a_y.sum(), b_x.sum() / b_y.sum()
    truths = {"tau difference": tau_b - tau_a, "tau relative percent": 100 * (tau_b / tau_a - 1)}
    rng = np.random.default_rng(seed)
    blocks: dict[tuple[str, str], list[Floats]] = {}
    for picked in draws(rng, len(a_y), clusters, replications):
        for name in truths:
            relative = name == "tau relative percent"
            found = paired_estimates(a_x[picked], a_y[picked], b_x[picked], b_y[picked], relative)
            for method in ("cautious", "skew"):
                pair = np.stack(estimate_bounds(found, cautious=method == "cautious"))
                blocks.setdefault((name, method), []).append(pair)
    return [
        {"estimator": name} | row(method, clusters, truths[name], *np.concatenate(pairs, axis=1))
        for (name, method), pairs in blocks.items()
    ]


def kind_cases(name: str, replications: int, conversations: int = 20_000) -> Iterator[dict[str, Any]]:
    """Rows of one of `SCENARIOS`."""
    a, b = population(SCENARIOS[name], conversations, seed=1)
    facts = {"scenario": name, "seeds": 1}
    for clusters in CLUSTERS:
        count = replications if clusters <= 164 else max(replications // 4, 1)
        for estimator, (x, y) in terms(a).items():
            for found in coverage(x, y, clusters, count, seed=2):
                yield facts | {"estimator": estimator} | found
        for found in paired_coverage(a, b, clusters, count // 2, seed=3):
            yield facts | found


def hard_cases(name: str, replications: int) -> Iterator[dict[str, Any]]:
    """Rows of one of `populations`, with `seeds`, `warned` (share of draws) and `coverage_unwarned`."""
    a, b = populations.pair(name, "none")
    skewed = populations.pair(name, populations.EFFECTS[1])
    for seeds in (1, 4):
        for clusters in HARD_CLUSTERS:
            rng = np.random.default_rng([2, clusters, seeds])
            (counts,) = populations.draw((a,), seeds, clusters, replications, rng)
            facts = {"scenario": name, "seeds": seeds}
            for found in single_rows(counts, a[:, :seeds].sum((0, 1)).astype(float)):
                yield facts | found
            counts_a, counts_b = populations.draw(skewed, seeds, clusters, replications, rng)
            truth = populations.tau(skewed[1][:, :seeds]) - populations.tau(skewed[0][:, :seeds])
            for found in difference_rows(counts_a, counts_b, truth):
                yield facts | {"scenario": f"{name}: a tenth gains, the rest lose"} | found
            counts_a, counts_b = populations.draw((a, b), seeds, clusters, replications, rng)
            yield facts | power_row(counts_a, counts_b)


def three_suites(replications: int) -> Iterator[dict[str, Any]]:
    """Share of tables without any starred difference, Holm's correction over `SUITES` and two drafters.

    Both drafters gain in a tenth of the prompts and lose in the rest; their tau is the baseline's (what the populations
    differ by is subtracted).
    """
    runs = {}
    for name in SUITES:
        base, new = populations.pair(name, populations.EFFECTS[1])
        runs[name] = base, new, populations.pair(name, populations.EFFECTS[1], seed=4)[1]
    for seeds in (1, 4):
        least: dict[str, list[Floats]] = {"cautious": [], "skew": []}
        for number, (name, clusters) in enumerate(SUITES.items()):
            rng = np.random.default_rng([5, number, seeds])
            old, *others = populations.draw(runs[name], seeds, clusters, replications, rng)
            for fresh, counts in zip(others, runs[name][1:], strict=True):
                truth = populations.tau(counts[:, :seeds]) - populations.tau(runs[name][0][:, :seeds])
                found = paired_estimates(
                    old[..., 0] + old[..., 1], old[..., 0], fresh[..., 0] + fresh[..., 1], fresh[..., 0], relative=False
                )
                found = found._replace(value=found.value - truth)
                for method, below in (("cautious", tail), ("skew", hall_alone)):
                    least[method].append(2 * np.fmin(below(found), below(mirrored(found))))
        for method, p_values in least.items():
            starred = len(p_values) * np.min(p_values, axis=0) <= 0.05  # Holm's first step
            facts = {"scenario": "three suites, two drafters", "seeds": seeds, "estimator": "any difference"}
            sizes = {"clusters": sum(SUITES.values()), "truth": 0.0, "replications": replications}
            yield facts | {"method": method, "coverage": 1 - starred.mean()} | sizes


def hall_alone(found: Estimates) -> Floats:
    """One-sided p-value of "the truth is not below 0" by Hall's transformation alone, as before `cautious`."""
    t, a = found.value / found.se, found.skew
    values: Floats = stdtr(found.df, t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6)
    return values


def single_rows(counts: Floats, everything: Floats) -> Iterator[dict[str, Any]]:
    """tau and the rates of positions 1, 3 and K; counts: (draws, clusters, columns), everything: their sums."""
    steps, total = counts[..., 0], everything[0]
    cases = {"tau": (steps + counts[..., 1], 1 + everything[1] / total, counts[..., 1])}
    cases |= {
        f"unconditional_{j}": (counts[..., 1 + j], everything[1 + j] / total, counts[..., 1 + j])
        for j in (1, 3, populations.K)
    }
    for estimator, (numerator, truth, accepted) in cases.items():
        found = ratio_estimates(numerator, steps)
        if estimator == "tau":
            bounds = {"skew": estimate_bounds(found)}
        else:
            trials = steps.sum(-1)
            bounds = {
                "effective": effective_bounds(found, trials),
                "effective, before": effective_bounds(without_tails(found), trials),
            }
        for method, (low, high) in bounds.items():
            warned = np.fmin(effective_clusters(accepted), effective_clusters(counts[..., 1])) < LEAST_EFFECTIVE
            yield {"estimator": estimator} | warned_row(method, truth, low, high, warned, steps.shape[1])


def difference_rows(a: Floats, b: Floats, truth: float) -> Iterator[dict[str, Any]]:
    """The paired difference of tau by both methods."""
    found = paired_estimates(a[..., 0] + a[..., 1], a[..., 0], b[..., 0] + b[..., 1], b[..., 0], relative=False)
    warned = np.fmin(effective_clusters(a[..., 1]), effective_clusters(b[..., 1])) < LEAST_EFFECTIVE
    for method in ("cautious", "skew"):
        low, high = estimate_bounds(found, cautious=method == "cautious")
        yield {"estimator": "tau difference"} | warned_row(method, truth, low, high, warned, a.shape[1])


def power_row(a: Floats, b: Floats) -> dict[str, Any]:
    """Share of tests that find a true difference as large as "could have seen" says on average (`coverage`)."""
    found = paired_estimates(a[..., 0] + a[..., 1], a[..., 0], b[..., 0] + b[..., 1], b[..., 0], relative=True)
    centred = found._replace(value=found.value - found.value.mean())
    seen = could_have_seen(found)
    low, _ = estimate_bounds(centred._replace(value=centred.value + seen.mean()), cautious=True)
    facts = {"estimator": "could have seen", "method": "cautious", "clusters": a.shape[1], "truth": seen.mean()}
    return facts | {"coverage": (low > 0).mean(), "replications": len(low)}


def could_have_seen(found: Estimates) -> Floats:
    """`statistics.detectable` of many draws."""
    low, high = estimate_bounds(found._replace(value=np.zeros_like(found.value)), cautious=True)
    return np.maximum(-low, high) + stdtrit(found.cautious_df, 0.8) * found.se


def warned_row(
    method: str, truth: float, low: Floats, high: Floats, warned: NDArray[np.bool_], clusters: int
) -> dict[str, Any]:
    """`row` with the share of draws whose output warns, and the coverage of the others."""
    holds = (low <= truth) & (truth <= high)
    return row(method, clusters, truth, low, high) | {
        "warned": warned.mean(),
        "coverage_unwarned": holds[~warned].mean() if (~warned).mean() > 0.02 else np.nan,
    }


def parts(replications: int) -> in_parts.Parts:
    """What the table is made of: a part for each scenario, one for each of the hard populations, one for tables."""
    few = min(replications, HARD_REPLICATIONS)
    return {
        **{name: partial(kind_cases, name, replications) for name in SCENARIOS},
        **{name: partial(hard_cases, name, few) for name in populations.POPULATIONS},
        "three suites": partial(three_suites, 2 * few),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--replications", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("results/statistics/coverage.csv"))
    in_parts.add_option(parser)
    args = parser.parse_args()
    found = in_parts.write(parts(args.replications), args.out, args)
    keys = ["scenario", "seeds", "estimator", "method"]
    print(found.pivot_table(index=keys, columns="clusters", values="coverage").round(3).to_string())


if __name__ == "__main__":
    main()
