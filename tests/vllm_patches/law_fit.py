"""Does a sample of token tuples follow an exact law? Pearson's chi-square with rare cells merged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

LEAST = 10.0  # expected count of a cell: at 5 the far tail of chi-square is already too light


@dataclass(frozen=True)
class Fit:
    p: float
    cells: int
    tv: float
    """Total variation distance between sample and law, over the merged cells."""
    noise: float
    """Its expectation for a perfect sampler."""
    detectable: float
    """A true distance of this size, whatever its shape, is rejected at `alpha` with probability 0.9 or more."""


def fit(law: np.ndarray, tokens: np.ndarray, alpha: float) -> Fit:
    """Test `tokens` [n, length] against `law` [V] * length.

    `detectable`: among all biases of total variation t over the cells, the noncentrality n * sum (delta^2 / p) is
    least, n * (2t)^2, for delta proportional to p (Cauchy-Schwarz), so that shape is the hardest to see.
    """
    n = len(tokens)
    counts = np.zeros(law.shape)
    np.add.at(counts, tuple(tokens.T), 1)
    expected, observed = merge(n * law.ravel(), counts.ravel())
    share, freedom = expected / n, len(expected) - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return Fit(
        p=float(stats.chi2.sf(statistic, freedom)),
        cells=len(expected),
        tv=float(0.5 * np.abs(observed / n - share).sum()),
        noise=float(np.sqrt(share * (1 - share) / (2 * np.pi * n)).sum()),
        detectable=detectable(freedom, n, alpha),
    )


def merge(expected: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge neighbouring cells, in order, until each expects at least LEAST; what is left over joins the last."""
    edges, total = [0], 0.0
    for cell, value in enumerate(expected, start=1):
        total += value
        if total >= LEAST:
            edges.append(cell)
            total = 0.0
    starts = edges[:-1] or [0]
    return np.add.reduceat(expected, starts), np.add.reduceat(observed, starts)


def detectable(freedom: int, n: int, alpha: float, power: float = 0.9) -> float:
    """Smallest total variation that the chi-square test rejects at `alpha` with this power."""
    critical = stats.chi2.isf(alpha, freedom)
    noncentrality = optimize.brentq(lambda x: stats.ncx2.sf(critical, freedom, x) - power, 1e-3, 1e5)
    return float(0.5 * np.sqrt(noncentrality / n))
