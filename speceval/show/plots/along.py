"""Acceptance along the output: do drafts get better or worse as the answer grows?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from speceval.estimate import acceptance, books, replay
from speceval.estimate.lengths import contexts, starts
from speceval.estimate.statistics import ratio_interval
from speceval.show.plots import style
from speceval.store import StoredRun

Lengths = Callable[[pd.DataFrame, pd.DataFrame], pd.Series]
"""A suite's steps and turns -> the length of each step."""

BINS = 12
"""At most."""


def bin_width(longest: int) -> int:
    """The smallest power of two that covers `longest` tokens with at most `BINS` bins."""
    return 1 << max(0, int(np.ceil(np.log2(max(longest, 1) / BINS))))


def binned(steps: pd.DataFrame, width: int, k: int, lengths: pd.Series | None = None) -> list[dict[str, Any]]:
    """Mean accepted draft tokens per step by place, for one suite's steps at K = k; only bins that have steps.

    Of a replay the same of the steps that a free run along its texts expects.

    lengths: of each step; None: output tokens that are there when it starts.
    Rows: start (first token of the bin; it holds starts in start … start + width - 1), steps, conversations, and value,
    low, high, se (95 %, clustered by conversation).
    """
    place = (starts(steps) if lengths is None else lengths) // width * width
    drafted = acceptance.drafted_steps(steps)
    rows = replay.expected(steps).loc[drafted.index] if replay.depth(steps) else drafted.assign(steps=1)
    keys = [place[rows.index].rename("start"), rows["conversation"]]
    sums = rows[["accepted", "steps"]].groupby(keys).sum().reset_index()
    return [
        {
            "start": int(str(start)),
            "steps": float(part["steps"].sum()),
            "conversations": len(part),
            **ratio_interval(part["accepted"], part["steps"], bounds=(0, k)).as_dict(),
        }
        for start, part in sums.groupby("start")
    ]


def draw(runs: Sequence[StoredRun]) -> style.Drawn:
    """Mean accepted draft tokens per step against the place in the output, with 95 % bands; a panel per suite."""
    return _draw(
        runs,
        "along",
        lambda steps, turns: starts(steps),
        "output tokens before the step",
        "Acceptance along the output: mean accepted draft tokens per verify step, by the number of output tokens "
        "before the step, in bins of {} tokens ({}). Bands: {}, for each bin "
        "alone. Late bins hold only the requests whose output is that long: a slope can come from which these are.",
    )


def draw_context(runs: Sequence[StoredRun]) -> style.Drawn:
    """The same against the length of the context."""
    return _draw(
        runs,
        "context",
        contexts,
        "tokens of context before the step",
        "Acceptance against the context: mean accepted draft tokens per verify step, by the tokens of prompt and "
        "output before the step, in bins of {} tokens ({}). Bands: {}, for each bin "
        "alone. Bins hold other prompts than the ones before: a slope can come from which these are.",
    )


def _draw(runs: Sequence[StoredRun], kind: str, lengths: Lengths, axis_label: str, caption: str) -> style.Drawn:
    """`caption` has places for widths of bins, settings and kind of interval."""
    for run in runs:
        books.require_order(run, f"--kind {kind}")
    suites = style.common_suites(runs)
    figure, axes = style.panels(suites, sharey=True)
    widths = []
    for suite, axis in zip(suites, axes, strict=True):
        steps = [style.steps(run, suite) for run in runs]
        of_steps = [lengths(rows, style.turns(run, suite)) for run, rows in zip(runs, steps, strict=True)]
        width = bin_width(max(int(each.max()) for each in of_steps))
        widths.append(width)
        for index, (run, label) in enumerate(zip(runs, style.labels(runs), strict=True)):
            rows = binned(steps[index], width, run.meta.spec.k, of_steps[index])
            centres = [row["start"] + width / 2 for row in rows]
            style.estimates(axis, centres, rows, band=True, label=label, **style.series(index))
        axis.set(xlabel=axis_label, xlim=(0, None))
    axes[0].set(ylabel="accepted tokens per step", ylim=(0, None))
    style.legend(figure, axes[0])
    shown = ", ".join(map(str, dict.fromkeys(widths)))
    if style.replayed(runs):
        caption = f"{caption} Along given texts: steps and accepted tokens that a free run is expected to have there."
    return style.Drawn(figure, caption.format(shown, style.settings(runs), style.interval(runs)))
