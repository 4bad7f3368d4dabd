"""Acceptance against length: how far an answer has come, and how long the context is. Pure functions on data frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from speceval.estimate.acceptance import drafted_steps
from speceval.estimate.statistics import ratio_interval
from speceval.store import REQUEST


def starts(steps: pd.DataFrame) -> pd.Series:
    """Output tokens that are there when each step starts: the prefill's one, and those of the request's steps before.

    `steps` holds every step of its requests, also those without drafts, which commit a token each. Index as `steps`.
    """
    ordered = steps.sort_values([*REQUEST, "step"])
    committed = ordered.groupby(REQUEST, sort=False)["committed"]
    return (1 + committed.cumsum() - ordered["committed"]).reindex(steps.index)


def contexts(steps: pd.DataFrame, turns: pd.DataFrame) -> pd.Series:
    """Tokens of prompt and output that are there when each step starts. Index as `steps`."""
    prompts = turns.set_index(REQUEST)["prompt_tokens"]
    return starts(steps) + prompts.reindex(pd.MultiIndex.from_frame(steps[REQUEST])).to_numpy()


def by_length(steps: pd.DataFrame, lengths: pd.Series, k: int) -> list[dict[str, Any]]:
    """tau of the steps whose length lies between two powers of two, for one suite's steps at K = k.

    lengths: of each step, from 1. Rows, for what has steps with drafts: `least` and `most` (lengths), `steps`,
    `conversations`, and value, low, high, se (95 %, clustered by conversation).
    """
    rows = drafted_steps(steps)
    power = np.floor(np.log2(lengths[rows.index].clip(lower=1))).astype(int).rename("power")
    sums = rows["accepted"].groupby([power, rows["conversation"]]).agg(["sum", "size"]).reset_index()
    return [
        {
            "least": 2 ** int(str(number)),
            "most": 2 ** (int(str(number)) + 1) - 1,
            "steps": int(part["size"].sum()),
            "conversations": len(part),
            **ratio_interval(part["sum"] + part["size"], part["size"], bounds=(1, k + 1)).as_dict(),
        }
        for number, part in sums.groupby("power")
    ]


def whole(steps: pd.DataFrame, k: int) -> dict[str, Any]:
    """tau of all these steps of one suite at K = k, as a row of `by_length` without lengths."""
    rows = drafted_steps(steps)
    sums = rows["accepted"].groupby(rows["conversation"]).agg(["sum", "size"])
    tau = ratio_interval(sums["sum"] + sums["size"], sums["size"], bounds=(1, k + 1)).as_dict()
    return {"steps": int(sums["size"].sum()), "conversations": len(sums), **tau}


def truncated(turns: pd.DataFrame) -> float | None:
    """Share of answers that `max_tokens` cut; None without answers."""
    return float((turns["finish_reason"] == "length").mean()) if len(turns) else None
