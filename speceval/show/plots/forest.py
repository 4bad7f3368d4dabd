"""Forest plot: relative difference of tau of each run against the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from speceval.errors import UserError
from speceval.show.plots import style
from speceval.store import StoredRun

ROW_HEIGHT, MARGIN = 0.22, 0.75
"""In inches."""
SHORT = 20
"""Letters of a label that leave a column room for the rest."""


def rows(runs: Sequence[StoredRun]) -> list[dict[str, Any]]:
    """Δ% of tau over the first run for each other run and suite: rows {suite, run, value, low, high, se}.

    `run` counts from 1 on in `runs`; the interval is 95 %, paired by conversation (`acceptance.compare`). Raises
    `UserError` for one run, or runs without a request in common.
    """
    if len(runs) < 2:
        raise UserError("a forest plot compares runs with the first one: name two or more")
    first = runs[0]
    return [
        {"suite": suite, "run": index, **style.compared(first, run, suite)["relative_percent"]}
        for suite in style.shared_suites(runs)
        for index, run in enumerate(runs[1:], start=1)
    ]


def draw(runs: Sequence[StoredRun]) -> style.Drawn:
    """A line per suite and run: Δ% with its interval, also as numbers."""
    found = rows(runs)
    labels = style.labels(runs)
    first = labels[0].replace("\n", "")
    suites = list(dict.fromkeys(row["suite"] for row in found))
    names = [
        f"{style.label(row['suite'])}: {labels[row['run']]}" if len(suites) > 1 else labels[row["run"]] for row in found
    ]
    wide = max(map(len, names)) > SHORT
    size = (style.PAGE if wide else style.COLUMN, MARGIN + ROW_HEIGHT * (len(found) + len(suites) - 1))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    places = [-(place + suites.index(row["suite"])) for place, row in enumerate(found)]
    style.estimates(axis, found, places, across=True, color="black", marker="s", linestyle="none")
    for place, row in zip(places, found, strict=True):
        axis.annotate(_figures(row), (1, place), xycoords=("axes fraction", "data"), xytext=(6, 0),
                      textcoords="offset points", va="center", fontsize=7, annotation_clip=False)  # fmt: skip
    axis.axvline(0, color="black", linewidth=0.6, zorder=0)
    axis.set_yticks(places, names)
    axis.set(xlabel=f"Δ% of {style.length(runs)} over {labels[0]}", ylim=(min(places) - 0.6, 0.6))
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(True, axis="x")
    return style.Drawn(
        figure,
        f"Relative difference of {style.length(runs)} over {first}, in percent ({style.settings(runs)}). Bars: 95 % "
        "intervals, paired by conversation over the requests that both runs have, each for itself: not corrected for "
        f"the number of rows ({len(found)}).",
    )


def _figures(row: dict[str, Any]) -> str:
    interval = "" if row["low"] is None else f" [{row['low']:+.1f}, {row['high']:+.1f}]"
    return "n/a" if row["value"] is None else f"{row['value']:+.1f}{interval}".replace("-", "−")
