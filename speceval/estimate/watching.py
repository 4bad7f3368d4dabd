"""Has the acceptance of running traffic fallen? A sequential test for an endless watch.

A slice is what a server's totals grew by in an interval. `learn` takes slices of traffic that is held to be right:
their mean tau, and by how much slices differ, whatever makes them differ (few steps, other prompts at other hours).
From then on a fall of tau by more than a margin is looked for, by a Shiryaev–Roberts sum of likelihood ratios,

    z_t = (tau_t - limit) / s_t        limit = (1 - margin) * learned tau,  s_t = spread of a slice of that many steps
    R_t = (R_{t-1} + 1) * exp(-a z_t - a^2 / 2)        averaged over a few sizes a of the fall

Where slices are independent and tau has not fallen beyond the margin, R_t - t is a supermartingale, so that an alarm at
R_t >= c comes within n slices with a chance of n / c at most (optional stopping; Roberts 1966, Pollak 1985). c is
chosen so that this is the stated rate for a month of slices. Learned numbers enter by their cautious bounds. Pure:
counts in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field
from scipy.special import chdtri, stdtrit

from speceval.errors import UserError
from speceval.files import Strict
from speceval.store.schema import Counters

SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Falls beyond the margin that are looked for, in spreads of a slice."""
LEAST_LEARNED = 20
"""Slices; fewer do not tell by how much slices differ."""
LEAST_STEPS = 50
"""Of a slice; less traffic is joined with the next interval's."""
CAUTION = 0.99
"""Level of the bounds by which learned numbers enter."""
MONTH = 30 * 86400.0
"""Seconds."""
LARGEST = 1e300


@dataclass(frozen=True)
class Slice:
    """What the totals grew by."""

    time: float
    """Seconds since the epoch, at its end."""
    seconds: float
    steps: int
    drafted: int
    accepted: int
    positions: tuple[int, ...]
    """#(A >= j), entry j-1."""

    @property
    def tau(self) -> float:
        """Acceptance length."""
        return 1 + self.accepted / self.steps

    def row(self) -> dict[str, Any]:
        """As a row of a table."""
        named = {f"accepted_{number}": count for number, count in enumerate(self.positions, start=1)}
        plain = {name: getattr(self, name) for name in ("time", "seconds", "steps", "drafted", "accepted", "tau")}
        return plain | named


class Learned(Strict):
    """What slices of right traffic look like."""

    kind: Literal["speceval watch"] = "speceval watch"
    version: Literal[1] = 1
    slices: int = Field(ge=LEAST_LEARNED)
    tau: float = Field(ge=1)
    tau_low: float
    """Cautious bound of the mean."""
    spread: float = Field(gt=0)
    """Of a slice of `steps` steps: cautious bound of its standard deviation, a dependence of neighbours included."""
    steps: float = Field(gt=0)
    """Of a slice, in the mean."""
    positions: list[float]


def learn(slices: Sequence[Slice]) -> Learned:
    """The mean and the spread of some slices. Raises `UserError` for too few."""
    if len(slices) < LEAST_LEARNED:
        raise UserError(f"--learn {len(slices)}: at least {LEAST_LEARNED} slices are needed to know how they differ")
    n, taus = len(slices), np.array([one.tau for one in slices])
    weights = np.array([one.steps for one in slices], float)
    tau = float(np.average(taus, weights=weights))
    residuals = (taus - tau) * np.sqrt(weights / weights.mean())
    variance = float(residuals @ residuals) / (n - 1)
    correlation = min(max(float(residuals[1:] @ residuals[:-1]) / float(residuals @ residuals or 1), 0.0), 0.9)
    inflation = (1 + correlation) / (1 - correlation)
    spread = math.sqrt(max(variance, 1e-12) * inflation * (n - 1) / float(chdtri(n - 1, CAUTION)))
    error = math.sqrt(max(variance, 1e-12) * inflation / n)
    steps = sum(one.steps for one in slices)
    longest = max(len(one.positions) for one in slices)
    counts = [sum(one.positions[j] for one in slices if j < len(one.positions)) for j in range(longest)]
    return Learned(
        slices=n,
        tau=tau,
        tau_low=tau - float(stdtrit(n - 1, CAUTION)) * error,
        spread=spread,
        steps=float(weights.mean()),
        positions=[count / steps for count in counts],
    )


@dataclass
class Detector:
    """The test: `add` each slice, `alarm` says whether tau has fallen."""

    learned: Learned
    margin: float
    threshold: float
    """c."""
    sums: list[float] = field(default_factory=lambda: [0.0] * len(SIZES))

    @property
    def limit(self) -> float:
        """tau below which it has fallen beyond the margin."""
        return self.learned.tau_low * (1 - self.margin)

    @property
    def score(self) -> float:
        """R, which grows while tau is below the limit; an alarm at `threshold`."""
        return sum(self.sums) / len(self.sums)

    @property
    def alarm(self) -> bool:
        """Whether acceptance has fallen."""
        return self.score >= self.threshold

    def add(self, slice_: Slice) -> None:
        """Take a slice."""
        spread = self.learned.spread * math.sqrt(self.learned.steps / slice_.steps)
        z = (slice_.tau - self.limit) / spread
        self.sums = [
            min((total + 1) * math.exp(min(-size * z - size * size / 2, 600)), LARGEST)
            for total, size in zip(self.sums, SIZES, strict=True)
        ]


def threshold(false_alarms: float, interval: float) -> float:
    """c at which an alarm in a month without a fall has a chance of `false_alarms` at most."""
    return max(MONTH / interval / false_alarms, 2.0)


@dataclass
class Slicer:
    """Totals, as they are read one after another, to slices."""

    last: Counters | None = None
    time: float = 0.0
    looks: int = 0
    restarts: int = 0
    """How often the totals began anew."""

    def take(self, now: Counters, time: float, least: int = LEAST_STEPS) -> Slice | None:
        """The slice that ends now; None at the first look, after a restart, and while there are fewer steps than
        `least`.
        """
        self.looks += 1
        if self.last is not None and fell(self.last, now):
            self.restarts += 1
            self.last = None
        if self.last is None:
            self.last, self.time = now, time
            return None
        before = [0] * (len(now.num_accepted_tokens_per_pos) - len(self.last.num_accepted_tokens_per_pos))
        grown = now.minus(self.last.plus(Counters(num_accepted_tokens_per_pos=before)) if before else self.last)
        if grown.num_drafts < least:
            return None
        found = Slice(
            time,
            time - self.time,
            grown.num_drafts,
            grown.num_draft_tokens,
            grown.num_accepted_tokens,
            tuple(grown.num_accepted_tokens_per_pos),
        )
        self.last, self.time = now, time
        return found


def fell(before: Counters, now: Counters) -> bool:
    """Whether totals are not those of `before` and what came after: any is lower, or a position is gone."""
    positions = before.num_accepted_tokens_per_pos, now.num_accepted_tokens_per_pos
    return (
        any(getattr(now, name) < getattr(before, name) for name in DRAFTS)
        or len(positions[1]) < len(positions[0])
        or any(later < earlier for earlier, later in zip(*positions, strict=False))
    )


DRAFTS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
