"""Speed under load, from the times of each request: what serving benchmarks print, with intervals.

Names and definitions are those of `vllm bench serve` (docs/measure/under-load.md says what aiperf calls them). The
unit of every interval is the conversation. Requests that run at the same time delay each other, which that leaves out:
the intervals of times are too narrow (scripts/load_coverage.py says by how much).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from speceval.estimate.statistics import (
    Floats,
    Interval,
    paired_ratio_difference,
    proportion_interval,
    ratio_interval,
)
from speceval.store import TIME_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms")
"""Time to first token, per output token after it, between chunks, and of the whole request."""
QUANTILES = {"median": 0.5, "p99": 0.99}
CLUSTER = ["suite", "conversation"]


def timed(turns: pd.DataFrame) -> pd.DataFrame:
    """The turns whose times are known."""
    if "ttft" not in turns:
        return turns[:0].reindex(columns=[*turns.columns, *TIME_COLUMNS])
    return turns[turns["ttft"].notna()]


def summarise(turns: pd.DataFrame, confidence: float = 0.95) -> dict[str, Any]:
    """For each of `KINDS` its `mean`, `median` and `p99` over requests, {value, low, high, se} in milliseconds.

    Between chunks (`itl_ms`) there is the mean of all pauses alone, as single ones are not kept. `requests`: how many.
    """
    known = timed(turns)
    found: dict[str, Any] = {"requests": len(known)}
    for kind in KINDS:
        values, weights = _of(kind, known)
        clusters = _clusters(known)
        mean = ratio_interval(_sums(values * weights, clusters), _sums(weights, clusters), confidence, (0.0, np.inf))
        found[kind] = {"mean": mean.as_dict()}
        if kind != "itl_ms":
            kept = weights > 0
            for name, q in QUANTILES.items():
                found[kind][name] = quantile(values[kept], clusters[kept], q, confidence).as_dict()
    return found


def throughput(turns: pd.DataFrame, seconds: float, most: int, confidence: float = 0.95) -> dict[str, Any]:
    """Of the whole run: `concurrency`, the mean number of requests in flight, and what was finished in a second.

    The intervals are for other conversations at the same concurrency: what a request does in a second of its own time,
    Σ tokens / Σ latency, times that number. `waited_ms`: for how long a conversation that was due was not sent; `held`:
    how many of them (`begun`) were due while as many requests as may be (`most`) were in flight.
    """
    known, clusters = timed(turns), _clusters(timed(turns))
    latency = known["latency"].to_numpy()
    concurrency = float(latency.sum() / seconds)
    per_cluster = _sums(latency, clusters)

    def a_second(counts: Floats) -> dict[str, float | None]:
        found = ratio_interval(_sums(counts, clusters), per_cluster, confidence, (0.0, np.inf)).as_dict()
        return {name: None if value is None else value * concurrency for name, value in found.items()}

    output = known["output_tokens"].to_numpy(float)
    first = known[known["turn"] == 1]
    return {
        "seconds": seconds,
        "concurrency": concurrency,
        "request_throughput": a_second(np.ones(len(known))),
        "output_throughput": a_second(output),
        "total_token_throughput": a_second(output + known["prompt_tokens"].to_numpy(float)),
        "waited_ms": 1000 * float(first["waited"].mean()) if len(first) else None,
        "held": int((_in_flight(known, (first["sent"] - first["waited"]).to_numpy()) >= most).sum()),
        "begun": len(first),
    }


def _in_flight(turns: pd.DataFrame, moments: Floats) -> Any:
    """Requests that were in flight at each moment."""
    sent, ended = np.sort(turns["sent"].to_numpy()), np.sort((turns["sent"] + turns["latency"]).to_numpy())
    return np.searchsorted(sent, moments, "left") - np.searchsorted(ended, moments, "right")


def compare(a: pd.DataFrame, b: pd.DataFrame, confidence: float = 0.95) -> dict[str, Any]:
    """Mean times of two runs, paired by conversation: for each of `KINDS` `a`, `b`, `relative_percent` (100 (b/a - 1))
    and `p_value`; empty where one of them has no times.
    """
    turns = timed(a), timed(b)
    if not all(len(part) for part in turns):
        return {}
    found: dict[str, Any] = {}
    for kind in KINDS:
        sums = [_by_conversation(kind, part) for part in turns]
        left, right = sums[0].align(sums[1], join="inner", axis=0)
        arrays = (left["value"], left["weight"], right["value"], right["weight"])
        difference = paired_ratio_difference(*arrays, confidence=confidence)
        means = (ratio_interval(part["value"], part["weight"], confidence).as_dict() for part in (left, right))
        found[kind] = {
            **dict(zip("ab", means, strict=True)),
            "relative_percent": difference.relative_percent.as_dict(),
            "p_value": difference.p_value,
        }
    return found


def quantile(values: Floats, clusters: Any, q: float, confidence: float = 0.95) -> Interval:
    """The q-quantile of values [n], with Woodruff's interval: the quantiles at the bounds of the share below it.

    Woodruff 1952, J. Am. Stat. Assoc. 47, 635-646; clusters [n]: the unit of each value. No interval where its upper
    bound is beyond the largest value: as for P99 with a few hundred requests.
    """
    if not len(values):
        return Interval(None, None, None, None, 0, 0.0)
    value = float(np.quantile(values, q))
    share = proportion_interval(
        _sums((values <= value).astype(float), clusters), _sums(np.ones(len(values)), clusters), confidence
    )
    if share.low is None or share.high is None or share.high >= 1 - 1 / len(values):
        return Interval(value, None, None, None, share.clusters, 0.0)
    low, high = (float(np.quantile(values, bound)) for bound in (share.low, share.high))
    return Interval(value, low, high, None, share.clusters, share.df)


def _of(kind: str, turns: pd.DataFrame) -> tuple[Floats, Floats]:
    """Milliseconds of each request, and how many there are of them in it."""
    ttft, latency, chunks = (turns[name].to_numpy(float) for name in ("ttft", "latency", "chunks"))
    later = turns["output_tokens"].to_numpy(float) - 1
    one = np.ones(len(turns))
    value, weight = {
        "ttft_ms": (ttft, one),
        "tpot_ms": ((latency - ttft) / np.maximum(later, 1), (later > 0) * one),
        "itl_ms": ((latency - ttft) / np.maximum(chunks - 1, 1), np.maximum(chunks - 1, 0)),
        "e2el_ms": (latency, one),
    }[kind]
    return 1000 * value, weight


def _by_conversation(kind: str, turns: pd.DataFrame) -> pd.DataFrame:
    values, weights = _of(kind, turns)
    return turns[CLUSTER].assign(value=values * weights, weight=weights).groupby(CLUSTER).sum()


def _clusters(turns: pd.DataFrame) -> Any:
    return turns.groupby(CLUSTER, sort=False).ngroup().to_numpy()


def _sums(values: Floats, clusters: Any) -> Floats:
    return np.bincount(clusters, values).astype(float) if len(values) else np.zeros(0)
