"""Speed-up from a run's timings (`speceval.measure.timing`): pure functions on plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from speceval.errors import NotComparable
from speceval.estimate.statistics import paired_ratio_difference
from speceval.store.schema import Speedup, Timing


def summarise(timed: Speedup, confidence: float = 0.95) -> dict[str, dict[str, dict[str, Any]]]:
    """Speed-up by suite and batch size of `timing.measure`: {value, low, high, se, blocks, tokens per second}."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for suite in dict.fromkeys(timing.suite for timing in timed.timings):
        for batch in timed.batches:
            mine = [timing for timing in timed.timings if (timing.suite, timing.batch) == (suite, batch)]
            alone_tokens, alone_seconds = [t.alone_tokens for t in mine], [t.alone_seconds for t in mine]
            drafted_tokens, drafted_seconds = [t.drafted_tokens for t in mine], [t.drafted_seconds for t in mine]
            relative = paired_ratio_difference(
                alone_tokens, alone_seconds, drafted_tokens, drafted_seconds, confidence
            ).relative_percent
            interval = {name: None if x is None else 1 + x / 100 for name, x in relative.as_dict().items()}
            interval["se"] = None if relative.se is None else relative.se / 100
            rates = {
                "drafted_tokens_per_second": sum(drafted_tokens) / sum(drafted_seconds),
                "alone_tokens_per_second": sum(alone_tokens) / sum(alone_seconds),
            }
            running = _running(mine)
            table.setdefault(suite, {})[str(batch)] = {**interval, "blocks": len(mine), **rates, "running": running}
    return table


def _running(timings: Sequence[Timing]) -> float | None:
    """Mean number of requests in flight on the engine that had fewer, weighted by time; None where nobody counted."""
    means = []
    for name in ("drafted", "alone"):
        seconds = [getattr(timing, f"{name}_seconds") for timing in timings]
        counts = [getattr(timing, f"{name}_running") for timing in timings]
        if None in counts:
            return None
        means.append(float(np.average(counts, weights=seconds)))
    return min(means)


def compare(a: Speedup, b: Speedup, confidence: float = 0.95) -> list[dict[str, Any]]:
    """b's speed-up over a's at each suite and batch that both timed: {suite, batch, a, b, relative_percent}.

    The two were timed one after the other, so that their errors are independent: the ratio's is the delta method's,
    with Student's quantile at the degrees of freedom that Welch and Satterthwaite give the two numbers of blocks.
    Raises `NotComparable` when they come from different machines.
    """
    require_same_machine(a, b)
    first, second = summarise(a, confidence), summarise(b, confidence)
    rows = []
    for suite in first.keys() & second.keys():
        for batch in first[suite].keys() & second[suite].keys():
            x, y = first[suite][batch], second[suite][batch]
            facts = {"suite": suite, "batch": int(batch), "a": x, "b": y}
            rows.append(facts | {"relative_percent": _relative_percent(x, y, confidence)})
    return sorted(rows, key=lambda row: (row["suite"], row["batch"]))


def _relative_percent(a: dict[str, Any], b: dict[str, Any], confidence: float) -> dict[str, float | None]:
    """value, low and high of b's speed-up over a's; without bounds where one has a single block, or neither varies."""
    if a["value"] is None or b["value"] is None:
        return {"value": None, "low": None, "high": None}
    ratio = b["value"] / a["value"]
    found: dict[str, float | None] = {"value": 100 * (ratio - 1), "low": None, "high": None}
    if a["se"] is None or b["se"] is None or a["se"] == b["se"] == 0:
        return found
    shares = [(one["se"] / one["value"]) ** 2 for one in (a, b)]
    freedom = sum(shares) ** 2 / sum(s**2 / (one["blocks"] - 1) for s, one in zip(shares, (a, b), strict=True))
    half = float(stdtrit(freedom, (1 + confidence) / 2) * ratio * np.sqrt(sum(shares)))
    return found | {"low": 100 * max(ratio - 1 - half, -1), "high": 100 * (ratio - 1 + half)}


def require_same_machine(a: Speedup, b: Speedup) -> None:
    """Raises `NotComparable` when two results of `timing.measure` come from different machines."""
    if a.machine != b.machine:
        differing = [name for name, value in a.machine if value != getattr(b.machine, name)]
        raise NotComparable(
            f"the speed-ups were timed on different machines ({', '.join(differing)} differ): time both on one"
        )
