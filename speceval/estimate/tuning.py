"""Which K to serve with: tokens per second from acceptance and step time, with errors. Pure functions on plain data.

With a full batch of b, s seconds for a step of the engine and g tokens that a request gets a step, b g / s tokens come
a second. g is the acceptance length with each request's prefill counted as a step of one token; it does not depend on
the batch. s does not depend on which tokens are accepted. So g comes from one set of answers, s from short bursts.

A machine's speed drifts. Bursts of the target alone are taken in turns with those of each setting, so that the ratio of
their step times has no drift; g times that ratio is the speed-up. Tokens per second are the speed-up times those of the
target alone, over all its bursts: what these differ from setting to setting is the drift, and in the error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from speceval.estimate.statistics import holm, paired_estimates, ratio_estimates

SIGNIFICANT = 0.05
UNITS = 4
"""Of a step time's error: groups of bursts in a row. Single bursts are too alike on a machine that others use too."""


@dataclass(frozen=True)
class Setting:
    """What may be served: a drafter and its K; without speculation K is 0."""

    draft: str
    k: int


ALONE = Setting("none", 0)


@dataclass(frozen=True)
class Burst:
    """Some steps of an engine with a full batch, and of the target alone right before or after."""

    seconds: float
    steps: int
    """Of each of its requests, prefills too."""
    alone_seconds: float | None = None
    """None: the target alone was not beside it."""
    alone_steps: int | None = None


@dataclass
class Tried:
    """What was measured of a setting."""

    accepted: pd.DataFrame
    """tokens, turns and steps (after the prefill) of each conversation, its index; expected ones of a replay."""
    bursts: dict[int, list[Burst]] = field(default_factory=dict)
    """By batch size."""


@dataclass
class Measured:
    """What `rates` is made of."""

    tried: dict[Setting, Tried] = field(default_factory=dict)
    alone: dict[int, list[list[Burst]]] = field(default_factory=dict)
    """Batch size -> bursts of the target alone, visit by visit, where it did not stand beside the others."""
    device: str | None = None
    runner: str | None = None
    """Model runner of the engines that draft."""
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Drafter -> where its acceptance comes from: `how`, and what it cost: `tokens` of the target, `steps` verified."""


@dataclass(frozen=True)
class Error:
    """Of a logarithm: the sum of independent parts, (standard error, degrees of freedom) each."""

    parts: tuple[tuple[float, float], ...]

    @property
    def se(self) -> float:
        return math.sqrt(sum(se**2 for se, _ in self.parts))

    @property
    def df(self) -> float:
        """Welch's and Satterthwaite's."""
        spread = sum((se / self.se) ** 4 / df for se, df in self.parts) if self.se else 0.0
        return 1 / spread if spread else math.inf

    def half_width(self, confidence: float) -> float:
        """Of the interval."""
        return float(_quantile((1 + confidence) / 2, self.df)) * self.se

    def above(self, distance: float) -> float:
        """One-sided p-value of a distance."""
        z = distance / max(self.se, 1e-12)
        return float(ndtr(-z)) if math.isinf(self.df) else float(stdtr(self.df, -z))


def _quantile(p: float, df: float) -> float:
    return float(ndtri(p)) if math.isinf(df) else float(stdtrit(df, p))


@dataclass(frozen=True)
class Rate:
    """Tokens per second of a setting at a batch size."""

    setting: Setting
    batch: int
    value: float
    low: float
    high: float
    speedup: tuple[float, float, float]
    """Over the target alone: value, low, high."""
    tau: float
    """Committed tokens a step after the prefill, those without drafts too."""
    step_ms: float
    """Milliseconds of an engine's step with a full batch."""
    time: Error
    """Of the logarithm of the step time over the target's alone."""
    gain: pd.Series
    """Linearised logarithm of tokens a step, by conversation; its sum is 0."""
    best: bool = False
    """Whether it has the highest rate at its batch size."""
    as_good: bool = False
    """Whether it is the best, or not significantly worse."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        names = ("value", "low", "high")
        return {
            "draft": self.setting.draft,
            "k": self.setting.k,
            "batch": self.batch,
            "tokens_per_second": dict(zip(names, (self.value, self.low, self.high), strict=True)),
            "speedup": dict(zip(names, self.speedup, strict=True)),
            "tau_committed": self.tau,
            "step_ms": self.step_ms,
            "best": self.best,
            "as_good_as_best": self.as_good,
        }


def rates(measured: Measured, confidence: float = 0.95) -> list[Rate]:
    """Tokens per second of the target alone and of every setting at every batch size, by the delta method.

    Units: of acceptance the conversation, of step times a group of bursts, of the drift the visits of the target alone.
    At each batch size the best is marked, and every one that is not worse at 5 %, two-sided, for all comparisons
    together (Holm); in a difference of two settings what their answers and the machine's speed have in common cancels.
    """
    batches = sorted({batch for tried in measured.tried.values() for batch in tried.bursts})
    return [rate for batch in batches for rate in _marked(_at(measured, batch, confidence), batch)]


def _at(measured: Measured, batch: int, confidence: float) -> list[Rate]:
    visits = measured.alone.get(batch) or [
        [Burst(b.alone_seconds, b.alone_steps or 0) for b in tried.bursts[batch] if b.alone_seconds is not None]
        for tried in measured.tried.values()
    ]
    seconds = [sum(burst.seconds for burst in visit) for visit in visits]
    steps = [sum(burst.steps for burst in visit) for visit in visits]
    slot = sum(seconds) / sum(steps)  # the target's alone, of a request's step
    drift = _drift(visits)
    rows = [_rate(setting, tried, batch, slot, drift, confidence) for setting, tried in measured.tried.items()]
    half = math.exp(drift.half_width(confidence))
    none = Error(((0.0, math.inf),))
    gain = pd.Series(dtype=float)
    alone = Rate(
        ALONE, batch, 1 / slot, 1 / slot / half, half / slot, (1.0, 1.0, 1.0), 1.0, 1000 * slot * batch, none, gain
    )
    return [*rows, alone]


def _drift(visits: Sequence[Sequence[Burst]]) -> Error:
    """Of the target's own step time: over visits, or over bursts where there was one."""
    units = [[burst] for burst in visits[0]] if len(visits) == 1 else visits
    seconds, steps = ([sum(getattr(b, name) for b in unit) for unit in units] for name in ("seconds", "steps"))
    estimate = ratio_estimates(seconds, steps)
    return Error(((_finite(estimate.se) / float(estimate.value), max(len(units) - 1, 1)),))


def _rate(setting: Setting, tried: Tried, batch: int, slot: float, drift: Error, confidence: float) -> Rate:
    accepted, bursts = tried.accepted, _joined(tried.bursts[batch])
    tokens, steps = accepted["tokens"], accepted["steps"] + accepted["turns"]
    gained = ratio_estimates(tokens, steps)
    g = float(gained.value)
    gain = (tokens - g * steps) / tokens.sum()
    own = [b.seconds for b in bursts], [b.steps for b in bursts]
    beside = all(b.alone_seconds is not None for b in bursts)
    if beside:
        alone = [b.alone_seconds or 0.0 for b in bursts], [b.alone_steps or 0 for b in bursts]
        paired = paired_estimates(*alone, *own, relative=True)
        slower, se = 1 + float(paired.value) / 100, _finite(paired.se) / 100
    else:
        single = ratio_estimates(*own)
        slower, se = float(single.value) / slot, _finite(single.se) / slot
    # What is not beside the target has a drift of its own, and is held against the target's.
    time = Error(((se / slower, len(bursts) - 1), *(() if beside else drift.parts * 2)))
    accuracy = (_finite(gained.se) / g, float(gained.df) or 1.0)
    speedup = g / slower
    whole, absolute = Error((accuracy, *time.parts)), Error((accuracy, *time.parts[:1], *drift.parts))
    ratio, rate = math.exp(whole.half_width(confidence)), math.exp(absolute.half_width(confidence))
    value = speedup / slot
    tau = float((tokens - accepted["turns"]).sum() / accepted["steps"].sum())
    step_ms = 1000 * batch * sum(own[0]) / sum(own[1])
    bounds = (speedup, speedup / ratio, speedup * ratio)
    return Rate(setting, batch, value, value / rate, value * rate, bounds, tau, step_ms, time, gain)


def _joined(bursts: Sequence[Burst]) -> list[Burst]:
    """Bursts in a row made one, so that there are `UNITS`: what slows the machine down for seconds slows several."""
    parts = [bursts[start:end] for start, end in pairwise(np.linspace(0, len(bursts), UNITS + 1).astype(int))]
    return [
        Burst(
            sum(burst.seconds for burst in part),
            sum(burst.steps for burst in part),
            None if part[0].alone_seconds is None else sum(burst.alone_seconds or 0.0 for burst in part),
            None if part[0].alone_steps is None else sum(burst.alone_steps or 0 for burst in part),
        )
        for part in parts
        if part
    ]


def _finite(se: Any) -> float:
    """A standard error, 0 where there is no spread to tell it from."""
    return float(np.nan_to_num(float(se), posinf=0.0))


def _difference(a: Rate, b: Rate) -> Error:
    """Of the logarithm of the ratio of two rates at one batch size."""
    both = a.gain.index.union(b.gain.index)
    terms = a.gain.reindex(both, fill_value=0.0) - b.gain.reindex(both, fill_value=0.0)
    count = len(terms)
    part = (math.sqrt(count / (count - 1) * float((terms**2).sum())), count - 1) if count > 1 else (0.0, 1)
    return Error((part, *a.time.parts, *b.time.parts))


def _marked(here: Sequence[Rate], batch: int) -> list[Rate]:
    top = max(here, key=lambda rate: rate.value)
    others = [rate for rate in here if rate is not top]
    p_values = [2 * _difference(top, rate).above(math.log(top.value / rate.value)) for rate in others]
    good = {id(rate) for rate, p in zip(others, holm(p_values), strict=True) if p is None or p >= SIGNIFICANT}
    return [replace(rate, best=rate is top, as_good=rate is top or id(rate) in good) for rate in here]


def stops_paying(found: Sequence[Rate]) -> int | None:
    """The smallest batch size at which nothing drafted is significantly faster than the target alone.

    None: there is none among those that were tried.
    """
    for batch in sorted({rate.batch for rate in found}):
        here = [rate for rate in found if rate.batch == batch]
        alone = next(rate for rate in here if rate.setting == ALONE)
        best = max((rate for rate in here if rate is not alone), key=lambda rate: rate.value)
        if _difference(best, alone).above(math.log(best.value / alone.value)) > SIGNIFICANT / 2:
            return batch
    return None


def schedule(found: Sequence[Rate], draft: str) -> list[tuple[int, int, int]]:
    """The drafter's best K by batch size: (first, last, K) without gaps; 0 where the target alone is faster.

    Between two sizes that were tried the border is their geometric mean; the last goes on for ever.
    """
    best: dict[int, int] = {}
    for batch in sorted({rate.batch for rate in found}):
        mine = [rate for rate in found if rate.batch == batch and rate.setting.draft in (draft, ALONE.draft)]
        best[batch] = max(mine, key=lambda rate: rate.value).setting.k
    sizes = list(best)
    borders = [math.isqrt(a * b) for a, b in pairwise(sizes)]
    ranges: list[tuple[int, int, int]] = []
    for size, last in zip(sizes, [*borders, sizes[-1]], strict=True):
        first = ranges[-1][1] + 1 if ranges else 1
        if ranges and ranges[-1][2] == best[size]:
            ranges[-1] = (ranges[-1][0], last, best[size])
        else:
            ranges.append((first, last, best[size]))
    return ranges


def accepted(turns: pd.DataFrame, steps: Mapping[str, float] | pd.Series) -> pd.DataFrame:
    """`Tried.accepted` of a run's turns and of its steps after the prefill, by conversation."""
    table = turns.groupby("conversation")["output_tokens"].agg(tokens="sum", turns="size")
    return table.assign(steps=pd.Series(steps).reindex(table.index, fill_value=0.0))
