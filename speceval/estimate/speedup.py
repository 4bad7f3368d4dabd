"""Speed-up from a run's timings (`speceval.measure.timing`): pure functions on plain data."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri

from speceval.errors import NotComparable
from speceval.estimate.statistics import paired_ratio_difference
from speceval.store.schema import Speedup


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
            table.setdefault(suite, {})[str(batch)] = {**interval, "blocks": len(mine), **rates}
    return table


def compare(a: Speedup, b: Speedup, confidence: float = 0.95) -> list[dict[str, Any]]:
    """b's speed-up over a's at each suite and batch that both timed: {suite, batch, a, b, relative_percent}.

    The two were timed one after the other, so that their errors are independent: the ratio's is the delta method's.
    Raises `NotComparable` when they come from different machines.
    """
    require_same_machine(a, b)
    first, second = summarise(a, confidence), summarise(b, confidence)
    rows = []
    for suite in first.keys() & second.keys():
        for batch in first[suite].keys() & second[suite].keys():
            x, y = first[suite][batch], second[suite][batch]
            ratio = y["value"] / x["value"]
            half = ndtri((1 + confidence) / 2) * ratio * np.hypot(x["se"] / x["value"], y["se"] / y["value"])
            percent = {"value": ratio - 1, "low": ratio - 1 - half, "high": ratio - 1 + half}
            rows.append(
                {
                    "suite": suite,
                    "batch": int(batch),
                    "a": x,
                    "b": y,
                    "relative_percent": {name: float(100 * value) for name, value in percent.items()},
                }
            )
    return sorted(rows, key=lambda row: (row["suite"], row["batch"]))


def require_same_machine(a: Speedup, b: Speedup) -> None:
    """Raises `NotComparable` when two results of `timing.measure` come from different machines."""
    if a.machine != b.machine:
        differing = [name for name, value in a.machine if value != getattr(b.machine, name)]
        raise NotComparable(
            f"the speed-ups were timed on different machines ({', '.join(differing)} differ): time both on one"
        )
