"""What all figures share: sizes, colours, markers, labels, and how a figure is written.

Widths are those of a paper: one column of 8.5 cm, or 17.8 cm for both. Colours are Okabe and Ito's; every series has a
marker and a line style of its own too, so that figures read in grey.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from speceval.errors import NotComparable, UserError
from speceval.estimate.acceptance import compare, undrafted_note, weight_of_conversations
from speceval.estimate.comparison import compare_replays
from speceval.estimate.replay import is_replay
from speceval.estimate.statistics import cluster_warnings
from speceval.files import write_whole
from speceval.show.labels import labels as run_labels
from speceval.store import StoredRun

COLUMN, PAGE = 8.5 / 2.54, 17.8 / 2.54
"""Widths in inches."""
PANEL_HEIGHT = 2.1
PANELS_IN_A_ROW = 3
LEGEND_LINE = 0.15

RC = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "grid.color": "#DDDDDD",
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "lines.markersize": 4,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType, as journals ask
    "text.parse_math": False,  # a drafter may be called $x$
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe and Ito 2008, with grey in the place of yellow, which vanishes on paper."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 2)), (0, (3, 3, 1, 3)))
BAND = 0.18
"""Opacity of bands."""
LABEL_WIDTH, LABEL_LENGTH = 46, 120
FORMATS = (".png", ".pdf")
SCREEN_DPI = 110


ENDS = {"value": "", "low": "_low", "high": "_high"}
"""An estimate's parts, with the endings that a position's rates have in `acceptance.summarise`."""
INTERVAL = "95 % intervals over new prompts like these and new seeds, clustered by conversation"


class Drawn(NamedTuple):
    """A figure and the caption that says what it shows and what its errors are."""

    figure: Figure
    caption: str

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        picture = io.BytesIO()
        with matplotlib.rc_context(RC | {"savefig.dpi": SCREEN_DPI}):
            self.figure.savefig(picture, format="png")
        return picture.getvalue()


def series(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of one series; odd ones have hollow markers."""
    return {
        "color": COLOURS[index],
        "marker": MARKERS[index],
        "linestyle": DASHES[index],
        "markerfacecolor": COLOURS[index] if index % 2 == 0 else "white",
    }


def estimates(
    axis: Any, x: Sequence[Any], y: Sequence[Any], *, band: bool = False, across: bool = False, **look: Any
) -> None:
    """Draw estimates, dicts with value, low and high, as `y`, or as `x` if they lie `across`, with bars or a `band`.

    Without a value nothing is drawn, without an interval only the point. `look` as `series` gives it.
    """
    places, found = (y, x) if across else (x, y)
    kept = [(place, row) for place, row in zip(places, found, strict=True) if row["value"] is not None]
    place = [at for at, _ in kept]
    value, low, high = (
        np.array([math.nan if row[end] is None else row[end] for _, row in kept], float) for end in ENDS
    )
    error = None if band else np.maximum([value - low, high - value], 0)  # rounding
    if across:
        axis.errorbar(value, place, xerr=error, capsize=2, **look)
    else:
        axis.errorbar(place, value, yerr=error, capsize=2, **look)
    if band:
        axis.fill_between(place, low, high, color=look["color"], alpha=BAND, linewidth=0)


def panels(suites: Sequence[str], height: float = PANEL_HEIGHT, **shared: Any) -> tuple[Figure, list[Any]]:
    """A figure with a panel per suite, three in a row; more than one panel is as wide as the page and named."""
    count = len(suites)
    columns = min(count, PANELS_IN_A_ROW)
    rows = -(-count // columns)
    figure = Figure(figsize=(COLUMN if count == 1 else PAGE, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis, suite in zip(axes, suites, strict=False):
        axis.grid(True, axis="y")
        if count > 1:
            axis.set_title(label(suite), loc="left")
    return figure, axes[:count]


def legend(figure: Figure, axis: Any, columns: int = 0) -> None:
    """The legend of `axis`, below the panels: it covers nothing, and the figure grows by its height."""
    handles, names = axis.get_legend_handles_labels()
    columns = columns or (1 if figure.get_figwidth() <= COLUMN else 2)
    lines = sum(1 + name.count("\n") for name in names)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * -(-lines // columns))
    figure.legend(handles, names, loc="outside lower left", ncols=columns)


def common_suites(runs: Sequence[StoredRun], series: int | None = None) -> list[str]:
    """Suites that every run has, with drafts; `series` is the number of lines [the number of runs].

    Raises `UserError` for too many to tell apart, for no such suite and for a suite without drafts.
    """
    count = len(runs) if series is None else series
    if count > len(COLOURS):
        raise UserError(f"{count} runs: a figure tells {len(COLOURS)} apart: draw fewer, or --kind forest")
    suites = shared_suites(runs)
    for run in runs:
        for suite in suites:
            if not (steps(run, suite)["drafted"] > 0).any():
                raise UserError(f"{run.directory}: no step of {suite} has drafts: there is nothing to draw")
    return suites


def shared_suites(runs: Sequence[StoredRun]) -> list[str]:
    """Suites that every run has, in the first run's order. Raises `UserError` when there is none."""
    found = [suite for suite in runs[0].suites if all(suite in run.suites for run in runs)]
    if not found:
        raise UserError("the runs have no suite in common: draw them one by one")
    return found


def steps(run: StoredRun, suite: str) -> pd.DataFrame:
    """The steps of one suite."""
    return run.suite(suite)[0]


def turns(run: StoredRun, suite: str) -> pd.DataFrame:
    """The requests of one suite."""
    return run.suite(suite)[1]


def labels(runs: Sequence[StoredRun], leave_out: Sequence[str] = ()) -> list[str]:
    """`speceval.show.labels` of the runs, fit for a legend."""
    return [wrapped(name) for name in run_labels(runs, leave_out, short)]


def label(text: str) -> str:
    """A user's text as one matplotlib label: wrapped to a column's width, long ones cut in the middle."""
    return wrapped(short(text))


def short(text: str) -> str:
    """A user's text without what no font has; long ones cut in the middle."""
    text = plain(text)
    return text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH // 2]}…{text[-LABEL_LENGTH // 2 :]}"


def wrapped(text: str) -> str:
    """`text` in lines of a column's width."""
    return "\n".join(text[start : start + LABEL_WIDTH] for start in range(0, len(text), LABEL_WIDTH))


def plain(text: str) -> str:
    """Without control characters and lone surrogates, which no font has."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def replayed(runs: Sequence[StoredRun]) -> bool:
    """Whether these runs are replays (`require_one_kind`)."""
    return is_replay(runs[0])


def require_one_kind(runs: Sequence[StoredRun]) -> None:
    """Raises `NotComparable` for replays beside runs that were sampled: one has expectations, the other counts."""
    kinds = {is_replay(run): run.directory for run in runs}
    if len(kinds) > 1:
        raise NotComparable(
            f"{kinds[True]} is a replay, {kinds[False]} was sampled: what one expects and the other counted are not "
            "the same numbers: draw replays by themselves"
        )


def tau(runs: Sequence[StoredRun]) -> str:
    """The column of `suite_summary` with the acceptance length that is drawn."""
    return "tau_committed" if replayed(runs) else "tau"


def length(runs: Sequence[StoredRun]) -> str:
    """The name of that length."""
    return tau(runs).replace("_", " ")


def interval(runs: Sequence[StoredRun]) -> str:
    """What an interval covers."""
    return INTERVAL.replace("new seeds", "new texts") if replayed(runs) else INTERVAL


def compared(a: StoredRun, b: StoredRun, suite: str) -> dict[str, Any]:
    """`acceptance.compare` of one suite, over the requests that both runs have; of replays the same of their texts."""
    if replayed([a, b]):
        return compare_replays(steps(a, suite), steps(b, suite))
    return compare(steps(a, suite), turns(a, suite), steps(b, suite), turns(b, suite))


def settings(runs: Sequence[StoredRun]) -> str:
    """What a caption says of the protocol: "target zoo, T=1, K=5, probabilistic drafts"."""
    specs = [run.meta.spec for run in runs]

    def values(name: str, form: str = "{}") -> str:
        return ", ".join(form.format(value) for value in sorted({getattr(spec, name) for spec in specs}))

    return f"target {values('target')}, T={values('temperature', '{:g}')}, K={values('k')}, {values('drafting')} drafts"


def notes(runs: Sequence[StoredRun]) -> list[str]:
    """What a caption must say of few conversations, of unfinished runs and of books that do not balance."""
    weights = [weight_of_conversations(run.suite(suite)[0]) for run in runs for suite in shared_suites(runs)]
    fewest = min((weight for weight in weights if weight[0]), key=lambda weight: weight[1], default=(0, 0.0, 0.0))
    share = max(share for *_, share in weights)
    found = [f"{warning[0].upper()}{warning[1:]}." for warning in cluster_warnings(*fewest[:2], share)]
    for run in runs:
        for suite in shared_suites(runs):
            if (line := undrafted_note(run.suite(suite)[0])) is not None:
                found.append(f"Run {run.directory.name}, {suite}: {line}.")
        if not run.complete:
            found.append(f"Run {run.directory.name} is unfinished.")
        if run.meta.problems:
            found.append(f"Run {run.directory.name} has {len(run.meta.problems)} problems: see `speceval show`.")
    return found


def require_format(path: Path) -> None:
    """Raises `UserError` for a file that no figure is written to."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: figures are written as {' or '.join(FORMATS)}: name such a file")


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path`, whole or not at all; its suffix (.png, .pdf) is the format.

    Raises `UserError` for another suffix.
    """
    require_format(path)
    # A date in the file would make every regeneration differ.
    metadata = {"CreationDate": None} if path.suffix.lower() == ".pdf" else {}
    draw = partial(figure.savefig, format=path.suffix.lower()[1:], metadata=metadata)
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box in the figure says it
        write_whole(path, draw)
