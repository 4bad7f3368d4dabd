"""The report's figures, drawn by `speceval.show.plots` and kept as data in the page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib

from speceval.errors import UserError
from speceval.show import plots
from speceval.store import StoredRun

TITLES = {
    "forest": ("Differences of tau", "the numbers are in the table of differences"),
    "positions": ("Acceptance by draft position", "the numbers are in the table of draft positions"),
    "along": ("Acceptance along the output", "accepted draft tokens per step against the place of the step"),
    "conversations": ("Spread over conversations", "the distribution of the conversations' own tau"),
}
"""Kinds of `plots.draw` with their titles and what a reader who does not see them should know."""

RC = {"svg.fonttype": "path", "svg.hashsalt": "speceval"}
"""Letters as outlines: a picture in a page cannot name the reader's fonts. The same run gives the same bytes."""

PIXELS_PER_INCH = 150
"""On a screen a figure made for a column of a paper is shown larger."""


@dataclass(frozen=True)
class Picture:
    """One figure."""

    title: str
    alt: str
    caption: str
    source: str
    """A data URL."""
    width: int
    """In CSS pixels."""


def pictures(runs: Sequence[StoredRun], allow: Sequence[str], compared: bool) -> tuple[list[Picture], list[str]]:
    """The figures that these runs give, and a line for each that they do not."""
    found, left_out = [], []
    for kind, (title, summary) in TITLES.items():
        if kind == "forest" and not compared:
            continue
        try:
            drawn = plots.draw(kind, runs, allow)
        except UserError as error:
            left_out.append(f"{title} is not drawn: {error}")
            continue
        width = round(drawn.figure.get_figwidth() * PIXELS_PER_INCH)
        found.append(Picture(title, f"{title}: {summary}; described below.", drawn.caption, _data_url(drawn), width))
    return found, left_out


def _data_url(drawn: plots.Drawn) -> str:
    picture = io.BytesIO()
    with matplotlib.rc_context(plots.style.RC | RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box in the figure says it
        drawn.figure.savefig(picture, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode()
