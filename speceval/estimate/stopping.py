"""When a run knows enough: looks at a growing run, with intervals that hold at all looks together.

After n_1 < n_2 < … conversations of a suite (`grid`) the run looks at the interval of its tau (or of its paired
difference to another run) and stops when the relative half-width is small enough. An ordinary 95 % interval at every
look would miss the truth at some look far more often than in 5 % of runs, so the 5 % are spent over the looks (Lan and
DeMets 1983, Biometrika 70(3), 659-663). The clock of the spending is information: t = (target / half-width)², the part
of the asked precision that is there. Up to t

    4 (1 - Φ(a / √t)),   a = Φ^-1(1 - 0.05/4) = 2.241        (O'Brien-Fleming type)

is spent, but never more than half before the look that stops. So looks far from the target cost next to nothing. The
look that stops, or the last one, spends what is left: every run spends 5 % in all. This is the "maximum information"
design of Jennison and Turnbull 2000, Group Sequential Methods, ch. 7 and 11.

Critical values: the linearised terms of conversations in random order are a random walk, so the statistics of looks
j < k have correlation √(n_j / n_k); crossing probabilities by the recursion of Armitage, McPherson and Rowe 1969 (JRSS
A 132(2), 235-244). A critical value c becomes the nominal confidence 2 Φ(c) - 1 and is used in the interval of
`speceval.estimate.statistics` like any other (Jennison and Turnbull, sec. 3.8). At the look that stops c is at most a.
Measured coverage: docs/measure/when-to-stop.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from speceval.estimate.statistics import (
    NO_SPREAD,
    Interval,
    as_estimates,
    estimate_bounds,
    paired_ratio_difference,
    ratio_interval,
)
from speceval.store.schema import Look

Floats = NDArray[np.float64]

ERROR = 0.05
"""Chance that any look of a run misses the truth."""
FIRST_LOOK = 80
"""Conversations before the first look: with fewer, runs stop on a spread that is small by luck
(docs/measure/when-to-stop.md)."""
GROWTH = 1.25
"""Ratio of the conversations at two looks in a row."""

LARGEST = float(ndtri(1 - ERROR / 4))
"""No critical value of a stopping look exceeds this one: half of the error, at least, is left for it."""
LEAST_SPENT = 1e-6
"""A look that would spend less spends nothing and has no interval."""

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)

Outcome = Literal["goes on", "target reached", "all conversations used"]


@dataclass(frozen=True)
class Decision:
    """All looks so far; the last one is the look that stopped the run unless it goes on."""

    looks: list[Look]
    outcome: Outcome


def grid(size: int, first: int = FIRST_LOOK) -> list[int]:
    """Numbers of conversations at which a suite of `size` is looked at; the last is `size` itself.

    A look that would come less than a tenth before the end is left out.
    """
    looks, due = [], float(first)
    while due * 1.1 < size:
        looks.append(round(due))
        due *= GROWTH
    return [*looks, size]


def decide(
    estimate: Callable[[int], Interval], available: int, looks: Sequence[int], target: float, whole: float | None = None
) -> Decision:
    """Look after n conversations for every n of `looks` up to `available`, and stop where the rule says so.

    estimate: value and error from the first n conversations of the order, at whatever confidence; looks: `grid`;
    target: the relative half-width asked for; whole: what 100 % is, in the estimate's unit (None: the estimate). The
    decision depends on the order and on the conversations' data alone, so a resumed run decides as an uninterrupted
    one. A look without any spread between conversations stops no run: its width of zero is no proof. Raises
    ValueError when target is outside (0, 1).
    """
    if not 0 < target < 1:
        raise ValueError(f"the target must lie between 0 and 1, got {target}")
    spending, seen = _Spending(), list[Look]()
    for n in (n for n in looks if n <= available):
        found, last = estimate(n), n == looks[-1]
        if last or _reached(relative_half_width(found, 1 - ERROR, whole), target):
            confidence = spending.rest(n)
            width = relative_half_width(found, confidence, whole)
            if last or _reached(width, target):
                seen.append(Look(n, found.value, width, confidence, ERROR))
                return Decision(seen, "target reached" if _reached(width, target) else "all conversations used")
        widest = relative_half_width(found, nominal(LARGEST), whole)
        claimed = spending.spend(n, (target / widest) ** 2 if widest else 0.0)
        width = relative_half_width(found, claimed, whole) if claimed else None
        seen.append(Look(n, found.value, width, claimed, spending.spent))
    return Decision(seen, "goes on")


def relative_half_width(found: Interval, confidence: float, whole: float | None = None) -> float | None:
    """Half of the interval at `confidence` as a fraction of `whole` (None: of the estimate); None without one."""
    unit = whole if whole is not None else found.value
    if found.value is None or found.se is None or not unit:
        return None
    low, high = estimate_bounds(as_estimates(found), confidence, found.cautious)
    return float(high - low) / (2 * unit)


def tau_estimate(numerator: ArrayLike, denominator: ArrayLike) -> Callable[[int], Interval]:
    """`decide`'s estimate for a ratio of sums; entry c of both arrays, shape (G,), is conversation c of the order."""
    x, y = np.asarray(numerator, float), np.asarray(denominator, float)
    return lambda n: ratio_interval(x[:n], y[:n])


def paired_estimate(
    a_num: ArrayLike, a_den: ArrayLike, b_num: ArrayLike, b_den: ArrayLike
) -> Callable[[int], Interval]:
    """`decide`'s estimate for 100 (R_b / R_a - 1), so `whole` is 100; arrays as in `tau_estimate`."""
    a_x, a_y, b_x, b_y = (np.asarray(a, float) for a in (a_num, a_den, b_num, b_den))

    def estimate(n: int) -> Interval:
        if not ((a_y[:n] > 0) & (b_y[:n] > 0)).any():
            return Interval(None, None, None, None, 0, 0.0)
        return paired_ratio_difference(a_x[:n], a_y[:n], b_x[:n], b_y[:n]).relative_percent

    return estimate


def nominal(critical: float) -> float:
    """Nominal confidence of a two-sided critical value of the standard normal."""
    return float(2 * ndtr(critical) - 1)


@dataclass
class _Spending:
    """The random walk S_n inside the boundaries so far, and the error spent on them.

    nodes, mass: the walk's sub-density at the last boundary, without the paths that have crossed one, as quadrature
    nodes and the probability of each.
    """

    spent: float = 0.0
    n: int = 0
    nodes: Floats = field(default_factory=lambda: np.zeros(1))
    mass: Floats = field(default_factory=lambda: np.ones(1))

    def spend(self, n: int, information: float) -> float | None:
        """Spend what `information` allows at a look that goes on; returns its nominal confidence, None for nothing."""
        due = min(4 * ndtr(-LARGEST / np.sqrt(max(information, 1e-12))), ERROR / 2)
        if due - self.spent < LEAST_SPENT:
            return None
        critical = self._critical(n, due)
        bound, deviation = critical * np.sqrt(n), np.sqrt(n - self.n)
        nodes = bound * NODES
        moved = np.exp(-(((nodes[:, None] - self.nodes) / deviation) ** 2) / 2) @ self.mass
        self.mass = bound * WEIGHTS * moved / (deviation * np.sqrt(2 * np.pi))
        self.spent, self.n, self.nodes = float(due), n, nodes
        return nominal(critical)

    def rest(self, n: int) -> float:
        """Nominal confidence of a look after n conversations that spends all that is left."""
        return nominal(self._critical(n, ERROR))

    def _critical(self, n: int, spent: float) -> float:
        """c for which P(|S_n| > c √n, no boundary crossed before) is what `spent` adds to the error spent so far."""
        from scipy.optimize import brentq  # half a second, for runs that stop by themselves alone

        deviation, increment = np.sqrt(n - self.n), spent - self.spent

        def excess(critical: float) -> float:
            crossing = 2 * self.mass @ ndtr((self.nodes - critical * np.sqrt(n)) / deviation)  # both sides alike
            return float(crossing - increment)

        return float(brentq(excess, 0.5, 9.0, xtol=1e-9))


def _reached(width: float | None, target: float) -> bool:
    """Whether a half-width is known, backed by some spread, and small enough."""
    return width is not None and NO_SPREAD < width <= target
