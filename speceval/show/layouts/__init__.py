"""The tables of `speceval table`, one function per layout: entries (`entries.collect`) -> `form.Table`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from speceval.errors import UserError
from speceval.show.layouts.categories import categories
from speceval.show.layouts.entries import collect
from speceval.show.layouts.form import Table
from speceval.show.layouts.lengths import lengths
from speceval.show.layouts.paper import paper_arch, paper_main, paper_mean
from speceval.show.layouts.positions import positions
from speceval.show.layouts.summary import summary

LAYOUTS: dict[str, Callable[..., Table]] = {
    "summary": summary,
    "paper-main": paper_main,
    "paper-arch": paper_arch,
    "paper-mean": paper_mean,
    "positions": positions,
    "categories": categories,
    "lengths": lengths,
}

CHANGES = ("paper-arch", "paper-mean")
"""Layouts that show changes over another drafter."""


def build(layout: str, paths: Iterable[Path], over: str | None = None) -> Table:
    """The table of `layout` from run directories, folders of runs and published figures; see `entries.collect`.

    over: the drafter, or the setup, that Δ% is over; None: the one of the same architecture trained with KL.
    """
    if layout in CHANGES:
        return LAYOUTS[layout](collect(paths), over)
    if over is not None:
        raise UserError(f"--over: has no meaning with --layout {layout}: leave it out, or ask for {CHANGES[-1]}")
    return LAYOUTS[layout](collect(paths))
