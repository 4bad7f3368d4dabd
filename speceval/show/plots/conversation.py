"""How acceptance is spread over conversations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from speceval.errors import NotComparable
from speceval.estimate import acceptance, replay
from speceval.estimate.comparison import require_comparable
from speceval.show.plots import style
from speceval.show.tables import suite_summary
from speceval.store import StoredRun

BELOW = 0.07
"""Between the pooled values under a distribution, in shares."""


def taus(steps: pd.DataFrame) -> pd.Series:
    """tau of each conversation of one suite, over all its seeds and turns; of a replay tau_committed.

    Index: conversation.
    """
    if replay.depth(steps):
        expected = replay.conversation_totals(steps)
        return (expected["committed"] / expected["steps"])[expected["steps"] > 0]
    totals = acceptance.conversation_totals(steps)
    return 1 + totals["accepted"] / totals["steps"]


def differences(a: StoredRun, b: StoredRun, suite: str) -> tuple[pd.Series, dict[str, Any]]:
    """tau_b - tau_a of each conversation that both runs have, and the pooled difference (`acceptance.compare`).

    The conversations' differences are over all seeds of each run; the pooled one over the requests in both.
    """
    each = [taus(style.steps(run, suite)) for run in (a, b)]
    return (each[1] - each[0]).dropna(), style.compared(a, b, suite)["difference"]


def draw(runs: Sequence[StoredRun], allow: Collection[str] = ()) -> style.Drawn:
    """Distribution of the conversations' tau, a row per suite; of two runs also that of the paired differences.

    Two runs whose protocols differ in more than the drafter and the fields in `allow` stand beside each other without.
    """
    suites = style.common_suites(runs)
    paired, pairs = _paired(runs, allow)
    size = (style.PAGE if paired else style.COLUMN, style.PANEL_HEIGHT * len(suites))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(suites), 2 if paired else 1, squeeze=False)
    labels = style.labels(runs)
    for suite, axes in zip(suites, grid, strict=True):
        name = f"{style.plain(suite)}: " if len(suites) > 1 else ""
        for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
            _distribution(
                axes[0], taus(style.steps(run, suite)), suite_summary(run, suite)[style.tau(runs)], index, label
            )
        axes[0].set(xlabel=f"{name}{style.length(runs)} of a conversation", ylabel="share of conversations")
        if paired:
            _distribution(axes[1], *differences(runs[0], runs[1], suite), len(runs), "difference")
            axes[1].axvline(0, color="black", linewidth=0.6, zorder=0)
            axes[1].set(xlabel=f"{name}{style.length(runs)} of {labels[1]} minus {labels[0]}")
    style.legend(figure, grid[0][0])
    wider = (
        "A conversation's value is exact for its texts; other texts of the same prompt would have another."
        if style.replayed(runs)
        else "A conversation's tau is itself an estimate from a limited number of steps, so the spread is wider than "
        "that between prompts alone."
    )
    return style.Drawn(
        figure,
        f"Distribution over conversations: the share of conversations whose {style.length(runs)}, over all their "
        f"seeds and turns, is at most the value on the axis ({style.settings(runs)}).{pairs} {wider} Below each, with "
        f"a marker: the pooled value; bars: {style.interval(runs)}.",
    )


def _paired(runs: Sequence[StoredRun], allow: Collection[str]) -> tuple[bool, str]:
    """Whether there are differences to draw, and what the caption says of them."""
    if len(runs) != 2:
        return False, ""
    try:
        allowed = require_comparable([run.meta.fingerprint for run in runs], allow)
    except NotComparable as error:
        return False, f" Without differences within a conversation: {str(error).partition(': measure them')[0]}."
    differing = f" Runs differ in {'; '.join(allowed)}." if allowed else ""
    return True, f" Right: the same of the difference within a conversation.{differing}"


def _distribution(axis: Any, values: pd.Series, pooled: dict[str, Any], index: int, label: str) -> None:
    """Empirical distribution as steps, the pooled estimate below it."""
    look = style.series(index)
    ordered = np.sort(values.to_numpy())
    shares = np.arange(1, len(ordered) + 1) / len(ordered)
    axis.step(
        np.concatenate([ordered[:1], ordered]),
        np.concatenate([[0], shares]),
        where="post",
        color=look["color"],
        linestyle=look["linestyle"],
    )
    style.estimates(axis, [pooled], [-BELOW * (1 + len(axis.containers))], across=True, label=label, **look)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_ylim(-BELOW * (len(axis.containers) + 0.8), 1.03)
    axis.grid(True, axis="y")
