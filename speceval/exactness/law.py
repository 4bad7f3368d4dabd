"""Does a sample follow a law? Tests of tokens against probabilities, with far tails that can be trusted.

Everything here is plain numpy on counts and probabilities. Two kinds of null hypothesis occur:

- fixed cells: counts of independent continuations over the cells of one law (`fit`, `pearson`, `two_samples`);
- conditional: token i was drawn from its own law p_i, given everything before it. Sums of (indicator - p_i) are then
  martingales, whose variance is known term by term (`conditional`, `drift`, `uniform`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Floats = NDArray[np.float64]

LEAST = 10.0
"""Expected count of a cell: at 5 the far tail of chi-square is already too light."""
LEAST_POOLED = 50.0
"""The same for cells pooled over contexts, of which there are enough."""
BINS = 20
POWER = 0.9


class Verdict(StrEnum):
    """What a verification found."""

    exact = "exact"
    biased = "biased"
    unsettled = "not enough samples"


@dataclass(frozen=True)
class Fit:
    """What one test of cells found."""

    p: float
    cells: int
    tv: float
    """Total variation distance between sample and law, over the merged cells."""
    noise: float
    """Its expectation for a perfect sampler."""
    detectable: float
    """A true distance of this size, whatever its shape, is rejected at `alpha` with probability 0.9 or more."""


def fit(law: NDArray, tokens: NDArray, alpha: float, least: float = LEAST) -> Fit:
    """Test `tokens` [n, length] against `law` [V] * length: Pearson's chi-square with rare cells merged."""
    counts = np.zeros(law.shape)
    np.add.at(counts, tuple(tokens.T), 1)
    return pearson(*merge(len(tokens) * law.ravel(), counts.ravel(), least), alpha)


def pearson(expected: Floats, observed: Floats, alpha: float, totals: int = 1) -> Fit:
    """Pearson's chi-square of cells [C] that together hold all n draws; `totals`: how many of their sums are fixed."""
    n, freedom = float(expected.sum()), max(len(expected) - totals, 1)
    share = expected / n
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return Fit(
        p=float(stats.chi2.sf(statistic, freedom)),
        cells=len(expected),
        tv=float(0.5 * np.abs(observed - expected).sum() / n),
        noise=float(np.sqrt(share * (1 - share) / (2 * np.pi * n)).sum()),
        detectable=detectable(freedom, n, alpha),
    )


def merge(expected: Floats, observed: Floats, least: float = LEAST) -> tuple[Floats, Floats]:
    """Merge neighbouring cells, in order, until each expects at least `least`; what is left over joins the last."""
    starts = merge_starts(expected, least)
    return np.add.reduceat(expected, starts), np.add.reduceat(observed, starts)


def merge_starts(expected: Floats, least: float) -> list[int]:
    """First cell of each group of `merge`."""
    edges, total = [0], 0.0
    for cell, value in enumerate(expected, start=1):
        total += value
        if total >= least:
            edges.append(cell)
            total = 0.0
    return edges[:-1] or [0]


def detectable(freedom: int, n: float, alpha: float, power: float = POWER) -> float:
    """Smallest total variation that a chi-square test of n draws rejects at `alpha` with this power.

    Among all biases of total variation t over the cells, the noncentrality n * sum (delta^2 / p) is least,
    n * (2t)^2, for delta proportional to p (Cauchy-Schwarz), so that shape is the hardest to see.
    """
    critical = stats.chi2.isf(alpha, freedom)
    noncentrality = optimize.brentq(lambda x: stats.ncx2.sf(critical, freedom, x) - power, 1e-3, 1e6)
    return float(min(1.0, 0.5 * np.sqrt(noncentrality / n)))


def conditional(expected: Floats, covariance: Floats, observed: Floats, alpha: float) -> Fit:
    """Chi-square of cells [C] pooled over n draws from laws p_i that differ: (O - E)' V^- (O - E).

    E = sum_i p_i and V = sum_i (diag(p_i) - p_i p_i') [C, C]; the null law is chi-square with rank(V) degrees of
    freedom by the martingale central limit theorem. V is at most the multinomial covariance diag(E) - E E'/n, so
    `detectable`, which is the multinomial's, errs on the safe side.
    """
    n = float(expected.sum())
    starts = merge_starts(expected, LEAST_POOLED)
    groups = np.zeros((len(starts), len(expected)))
    for row, (low, high) in enumerate(zip(starts, [*starts[1:], len(expected)], strict=True)):
        groups[row, low:high] = 1
    expected, observed, covariance = groups @ expected, groups @ observed, groups @ covariance @ groups.T
    scale = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    kept = values > 1e-6
    freedom = max(int(kept.sum()), 1)
    standard = (vectors[:, kept].T @ ((observed - expected) / scale)) / np.sqrt(values[kept])
    return Fit(
        p=float(stats.chi2.sf(float((standard**2).sum()), freedom)),
        cells=len(starts),
        tv=float(0.5 * np.abs(observed - expected).sum() / n),
        noise=float(np.sqrt(np.diag(covariance) / (2 * np.pi)).sum() / n),
        detectable=detectable(freedom, n, alpha),
    )


def of_clusters(pairs: Sequence[tuple[Floats, Floats]], alpha: float) -> Fit:
    """Chi-square of homogeneity of two samples of count vectors, a vector [C] for each continuation.

    `pairs`: for each prompt the vectors [n, C] and [m, C] of both samples. The tokens of one continuation depend on
    each other, so the continuation is the unit: D = sum w (mean - mean) with w = n m / (n + m), over the covariance of
    whole vectors within prompts, V = sum w cov. D' V^- D is chi-square with rank(V) degrees of freedom under the null.

    A bias of total variation t of the tokens' mean law moves D by W L delta, W = sum w, L tokens a continuation, and
    (W L)^2 delta' V^- delta >= (2 t W L)^2 / max s' V s over signs s, of which the trace of V times the largest
    eigenvalue of its correlations is an upper bound: `detectable` holds for every shape.
    """
    cells = pairs[0][0].shape[1]
    total = sum((a.sum(0) + b.sum(0) for a, b in pairs), np.zeros(cells))
    starts = merge_starts(total / 2, LEAST_POOLED)
    shift, covariance = np.zeros(len(starts)), np.zeros((len(starts), len(starts)))
    weight, tokens, means = 0.0, 0.0, []
    for pair in pairs:
        a, b = (np.add.reduceat(vectors, starts, axis=1) for vectors in pair)
        n, m = len(a), len(b)
        if min(n, m) < 2:
            continue
        w = n * m / (n + m)
        inner = np.concatenate([a - a.mean(0), b - b.mean(0)])
        covariance += w * (inner.T @ inner) / (n + m - 2)
        shift += w * (a.mean(0) - b.mean(0))
        weight, tokens = weight + w, tokens + w * float(np.concatenate([a, b]).sum(1).mean())
        means.append((a.sum(0), b.sum(0)))
    scale = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    kept = values > 1e-6
    freedom = max(int(kept.sum()), 1)
    standard = (vectors[:, kept].T @ (shift / scale)) / np.sqrt(values[kept])
    ours, theirs = (sum(part[side] for part in means) for side in (0, 1))
    hardest = float(values.max()) * float(np.trace(covariance))
    return Fit(
        p=float(stats.chi2.sf(float((standard**2).sum()), freedom)),
        cells=len(starts),
        tv=float(0.5 * np.abs(ours / ours.sum() - theirs / theirs.sum()).sum()),
        noise=float(np.sqrt(np.diag(covariance) / (2 * np.pi)).sum() / max(tokens, 1e-12)),
        detectable=detectable(freedom, tokens**2 / max(hardest, 1e-12), alpha),
    )


def fold(tokens: NDArray, cells: int, seed: int) -> NDArray:
    """Which of `cells` groups each token id is in: at random by `seed`, so that no pattern of ids hides a bias.

    The mixing function of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA), of the id and the seed.
    """
    x = np.asarray(tokens, np.uint64) + np.uint64(0x9E3779B97F4A7C15 * (2 * seed + 1) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) % np.uint64(cells)).astype(np.intp)


def uniform(values: Floats, alpha: float) -> Fit:
    """Chi-square of n values that are independent and uniform on [0, 1) under the null, in up to 20 equal bins.

    For the probability integral transform of tokens (`rank_transform`): uniform whatever their laws were.
    """
    bins = int(min(BINS, max(len(values) / LEAST_POOLED, 2)))
    observed = np.bincount(np.minimum((values * bins).astype(int), bins - 1), minlength=bins).astype(float)
    return pearson(np.full(bins, len(values) / bins), observed, alpha)


def rank_transform(laws: Floats, tokens: NDArray, noise: Floats) -> Floats:
    """Randomised probability integral transform of `tokens` [n] under `laws` [n, V], tokens ordered by probability.

    U = (mass of more probable tokens) + noise * p(token), uniform on [0, 1) if noise is; ties go by token id.
    (Brockwell 2007, Statistics and Probability Letters 77(14), 1473-1478.)
    """
    at = np.take_along_axis(laws, tokens[:, None], 1)
    ids = np.arange(laws.shape[1])
    above = (laws > at) | ((laws == at) & (ids < tokens[:, None]))
    return (laws * above).sum(1) + noise * at[:, 0]


@dataclass(frozen=True)
class Drift:
    """What one test of a mean found."""

    p: float
    n: int
    total: float
    expected: float
    z: float
    detectable: float
    """A true shift of the mean by this much is rejected at `alpha` with probability 0.9 or more."""


def drift(outcomes: NDArray, means: Floats, variances: Floats, alpha: float) -> Drift:
    """Test n outcomes in [0, 1] against their conditional means and variances [n].

    With S = sum (outcome - mean) and V = sum variance, p = 2 exp(-S^2 / (2 (V + |S|/3))): Freedman's inequality
    (1975, Annals of Probability 3(1), 100-118), which holds at every n and however far out. `z` is S / sqrt(V).
    """
    n, total, expected = len(outcomes), float(np.sum(outcomes)), float(np.sum(means))
    s, v = total - expected, float(np.sum(variances))
    p = 1.0 if s == 0 else min(1.0, 2 * float(np.exp(-(s**2) / (2 * (v + abs(s) / 3)))))
    # Smallest |S| with p <= alpha solves S^2 = 2 log(2/alpha) (V + S/3); power adds its own quantile.
    log = np.log(2 / alpha)
    critical = log / 3 + np.sqrt((log / 3) ** 2 + 2 * log * v)
    seen = critical + stats.norm.isf(1 - POWER) * np.sqrt(v)
    z = s / np.sqrt(v) if v > 0 else (0.0 if abs(s) < 1e-9 else float(np.copysign(np.inf, s)))
    return Drift(p, n, total, expected, float(z), float(min(1.0, seen / max(n, 1))))


def two_samples(first: Floats, second: Floats, alpha: float) -> Fit:
    """Chi-square of homogeneity of two samples' counts [C]; cells are merged until both expect at least LEAST."""
    pooled = first + second
    smaller = min(first.sum(), second.sum()) / pooled.sum()
    starts = merge_starts(pooled * smaller, LEAST)
    a, b, both = (np.add.reduceat(counts, starts) for counts in (first, second, pooled))
    n, m, freedom = float(a.sum()), float(b.sum()), max(len(starts) - 1, 1)
    expected = both * n / (n + m)
    statistic = float((((a - expected) ** 2) / (expected * m / (n + m))).sum())
    effective = n * m / (n + m)
    share = both / (n + m)
    return Fit(
        p=float(stats.chi2.sf(statistic, freedom)),
        cells=len(starts),
        tv=float(0.5 * np.abs(a / n - b / m).sum()),
        noise=float(np.sqrt(share * (1 - share) / (2 * np.pi * effective)).sum()),
        detectable=detectable(freedom, effective, alpha),
    )
