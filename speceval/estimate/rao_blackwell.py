"""Acceptance with the verifier's own chances integrated out: less variance than counting, from the same tokens.

Given a step's drafts and the distributions p and q, draft j is accepted with probability

    s_j = (prod_{i<j} r_i) alpha_j,    r_i = min(1, p_i(d_i)/q_i(d_i)),    alpha_j = sum_x min(p_j(x), q_j(x)),

once the uniforms that accept the drafts and the draw of draft j itself are integrated out (Rao-Blackwell). E[s_j] =
P(A >= j), so that sum_j s_j is unbiased for A. Derivation and measured gain: docs/trust/tau-from-p-and-q.md.

Pure functions on the steps of a run that has `store.recorded_columns`; a step without a record counts nowhere here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr  # normal cdf

from speceval.estimate.statistics import Interval, ratio_interval

DISAGREEMENT = 5.0
"""|z| from which counts and Rao-Blackwell disagree: one false alarm in 1.7 million sound runs."""
ROUNDING = 1e-5
"""How far float32 may put a step's sum of s_j off, in the same direction in every step."""
FEW_STEPS = 200
"""Below this many steps z is not normal enough to be judged."""


def depth(steps: pd.DataFrame) -> int:
    """The largest draft position that the table has a record for; 0 without a record."""
    return sum(name.startswith("ratio_") for name in steps.columns)


def survival(steps: pd.DataFrame) -> NDArray[np.float64]:
    """s_j, shape [rows, depth]: chance that draft j of each row's step is accepted; NaN where nothing was drafted.

    Rows without a record are NaN throughout.
    """
    chances = np.empty((len(steps), depth(steps)), order="F")
    for j, column in enumerate(_by_position(steps)):
        chances[:, j] = column
    return chances


def _by_position(steps: pd.DataFrame) -> Iterator[NDArray[np.float64]]:
    """The columns of `survival`, one at a time: all of them take more memory than the table does."""
    reached = np.ones(len(steps))
    for j in range(1, depth(steps) + 1):
        yield reached * steps[f"alpha_{j}"].to_numpy()
        reached *= steps[f"ratio_{j}"].to_numpy()


def expected_accepted(steps: pd.DataFrame) -> NDArray[np.float64]:
    """sum_j s_j of each row's step, shape [rows]; NaN for rows without a record."""
    total, recorded = np.zeros(len(steps)), np.zeros(len(steps), bool)
    for column in _by_position(steps):
        there = ~np.isnan(column)
        total += np.where(there, column, 0)
        recorded |= there
    return np.where(recorded, total, np.nan)


def conversation_totals_rb(steps: pd.DataFrame) -> pd.DataFrame:
    """Sums over the recorded steps of each conversation: tau_rb = 1 + Σ expected / Σ steps.

    Columns: steps, expected (Σ s_j), accepted (the counts of the same steps); index: conversation.
    """
    rows = steps.assign(expected=expected_accepted(steps)) if depth(steps) else steps.assign(expected=np.nan)
    grouped = rows[rows["expected"].notna()].groupby("conversation", sort=False)
    totals = grouped[["expected", "accepted"]].sum()
    totals.insert(0, "steps", grouped.size())
    return totals


def tau_rb_interval(steps: pd.DataFrame, k: int, confidence: float = 0.95) -> Interval:
    """`tau_rb` with its conversation-clustered interval; all None without a record."""
    totals = conversation_totals_rb(steps)
    return ratio_interval(totals["steps"] + totals["expected"], totals["steps"], confidence, bounds=(1, k + 1))


def position_intervals(steps: pd.DataFrame, k: int, confidence: float = 0.95) -> list[Interval]:
    """ū_j = mean of s_j over the steps that drafted and recorded j, for j = 1 … k."""
    found = []
    cluster, ids = pd.factorize(steps["conversation"])
    columns = _by_position(steps)
    for _ in range(k):
        values = next(columns, None)
        if values is None:
            values = np.full(len(steps), np.nan)
        there = ~np.isnan(values)
        sums = np.bincount(cluster[there], values[there], minlength=len(ids))
        counts = np.bincount(cluster[there], minlength=len(ids))
        found.append(ratio_interval(sums, counts, confidence, bounds=(0, 1)))
    return found


def agreement(steps: pd.DataFrame) -> dict[str, Any]:
    """Whether counts and Rao-Blackwell tell the same: {steps, tau (of the recorded steps), z, agrees}.

    z is the difference of the two mean acceptances over its standard error. Given the drafts, p and q, the difference
    of a step has mean 0 whatever came before (a martingale), so steps, not conversations, are its unit. z, p_value and
    agrees are None below `FEW_STEPS` steps; z is 0 where nothing is left to chance.
    """
    expected = expected_accepted(steps) if depth(steps) else np.full(len(steps), np.nan)
    there = ~np.isnan(expected)
    count = int(there.sum())
    accepted = steps["accepted"].to_numpy(float)[there]
    difference = accepted - expected[there]
    found: dict[str, Any] = {"steps": count, "tau": float(1 + accepted.mean()) if count else None}
    if count < FEW_STEPS:
        return found | {"z": None, "p_value": None, "agrees": None}
    error = math.hypot(math.sqrt(float(np.square(difference).sum())), ROUNDING * count)
    z = float(difference.sum() / error) if error > 0 else 0.0
    return found | {"z": z, "p_value": float(2 * ndtr(-abs(z))), "agrees": abs(z) < DISAGREEMENT}
