"""Acceptance by draft position."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from speceval.estimate import books
from speceval.show.plots import style
from speceval.show.tables import suite_summary
from speceval.store import StoredRun

APART = 0.07
"""Between the markers of two runs at one position, in positions."""


def draw(runs: Sequence[StoredRun]) -> style.Drawn:
    """u_j = P(position j accepted) of each run, with 95 % intervals (`acceptance.summarise`); a panel per suite."""
    for run in runs:
        books.require_positions(run, "--kind positions")
    suites = style.common_suites(runs)
    figure, axes = style.panels(suites, sharey=True)
    for suite, axis in zip(suites, axes, strict=True):
        for index, (run, label) in enumerate(zip(runs, style.labels(runs), strict=True)):
            rows = suite_summary(run, suite)["positions"]
            shift = APART * (index - (len(runs) - 1) / 2)
            style.estimates(
                axis,
                [row["position"] + shift for row in rows],
                [{name: row[f"unconditional{end}"] for name, end in style.ENDS.items()} for row in rows],
                label=label,
                **style.series(index),
            )
        axis.set_xlabel("draft position j")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set(ylabel="P(position j accepted)", ylim=(0, None))
    style.legend(figure, axes[0])
    if style.replayed(runs):
        return style.Drawn(
            figure,
            "Acceptance by draft position along given texts: the chance that a step of a free run accepts position j "
            f"and all before it, over the steps whose j-th token is in the text ({style.settings(runs)}). Bars: "
            f"{style.interval(runs)}. Compare them with other replays only.",
        )
    return style.Drawn(
        figure,
        "Acceptance by draft position: the share of verify steps that drafted position j which accepted it and all "
        f"positions before it ({style.settings(runs)}). Bars: {style.INTERVAL}; Korn and Graubard's for a proportion.",
    )
