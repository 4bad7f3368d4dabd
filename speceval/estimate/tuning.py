"""Which K to serve with: tokens per second from acceptance and step time, with errors. Pure functions on plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from scipy.special import stdtr, stdtrit

from speceval.estimate import acceptance
from speceval.estimate.statistics import holm, ratio_interval

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Setting:
    """What may be served: a drafter and its K; without speculation K is 0."""

    draft: str
    k: int


@dataclass
class Bursts:
    """What was timed of a setting."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    """Batch -> seconds of each burst."""
    steps: dict[int, list[int]] = field(default_factory=dict)
    """Batch -> steps of all its requests, of each burst; without speculation tokens."""
    turns: list[pd.DataFrame] = field(default_factory=list)
    tables: list[pd.DataFrame] = field(default_factory=list)
    """Turns and steps of every burst, whatever its batch: acceptance does not depend on it."""


@dataclass(frozen=True)
class Rate:
    """Tokens per second of a setting at a batch size."""

    setting: Setting
    batch: int
    value: float
    low: float
    high: float
    relative_se: float
    """Standard error of its logarithm."""
    df: int
    """Degrees of freedom of that."""
    tau: float
    """Committed tokens a decode step, those without drafts too: what the step time is of."""
    step_ms: float
    """Milliseconds of the engine's time for a step of a request: at batch b an engine step takes b times as long."""
    best: bool = False
    """Whether it has the highest rate at its batch size."""
    as_good: bool = False
    """Whether it is the best, or not significantly worse."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "draft": self.setting.draft,
            "k": self.setting.k,
            "batch": self.batch,
            "tokens_per_second": {"value": self.value, "low": self.low, "high": self.high},
            "tau_committed": self.tau,
            "step_ms": self.step_ms,
            "best": self.best,
            "as_good_as_best": self.as_good,
        }


def rates(measured: dict[Setting, Bursts], confidence: float = 0.95) -> list[Rate]:
    """Tokens per second of every setting at every batch size: tokens a step / seconds a step, by the delta method.

    Tokens a step are those of all decode steps and the requests' first tokens. The unit of tau is the conversation, of
    the step time the burst; the two are taken as independent, and quantiles are Student's for the bursts. At each batch
    size the best is marked, and every one that is not worse at 5 %, two-sided, for all comparisons together (Holm).
    """
    found = [_rate(setting, one, batch, confidence) for setting, one in measured.items() for batch in one.seconds]
    return [marked for batch in sorted({rate.batch for rate in found}) for marked in _marked(found, batch)]


def _rate(setting: Setting, bursts: Bursts, batch: int, confidence: float) -> Rate:
    time = ratio_interval(bursts.seconds[batch], bursts.steps[batch])
    steps, turns = pd.concat(bursts.tables, ignore_index=True), pd.concat(bursts.turns, ignore_index=True)
    tau, tau_se = 1.0, 0.0
    if setting.k:
        whole = acceptance.summarise(steps, turns, setting.k)["tau_all_steps"]
        tau, tau_se = whole["value"], whole["se"] or 0.0
    tokens = tau + len(turns) / len(steps)  # each request's first token comes without a step
    assert time.value is not None
    df = len(bursts.seconds[batch]) - 1
    error = math.hypot(tau_se / tokens, (time.se or 0.0) / time.value)
    value, half = tokens / time.value, math.exp(stdtrit(df, (1 + confidence) / 2) * error)
    return Rate(setting, batch, value, value / half, value * half, error, df, tau, 1000 * time.value)


def _marked(found: Sequence[Rate], batch: int) -> list[Rate]:
    here = [rate for rate in found if rate.batch == batch]
    top = max(here, key=lambda rate: rate.value)
    others = [rate for rate in here if rate is not top]
    distances = [
        math.log(top.value / rate.value) / max(math.hypot(top.relative_se, rate.relative_se), 1e-12) for rate in others
    ]
    adjusted = holm([2 * float(stdtr(top.df, -z)) for z in distances])
    good = {id(rate) for rate, p in zip(others, adjusted, strict=True) if p is None or p >= SIGNIFICANT}
    return [replace(rate, best=rate is top, as_good=rate is top or id(rate) in good) for rate in here]


def stops_paying(found: Sequence[Rate]) -> int | None:
    """The smallest batch size at which nothing drafted is significantly faster than the target alone.

    None: there is none among those that were tried, or the target alone was not timed.
    """
    for batch in sorted({rate.batch for rate in found}):
        alone = [rate for rate in found if rate.batch == batch and not rate.setting.k]
        drafted = [rate for rate in found if rate.batch == batch and rate.setting.k]
        if not alone or not drafted:
            return None
        best = max(drafted, key=lambda rate: rate.value)
        error = math.hypot(best.relative_se, alone[0].relative_se)
        if math.log(best.value / alone[0].value) < stdtrit(best.df, 1 - SIGNIFICANT / 2) * error:
            return batch
    return None
