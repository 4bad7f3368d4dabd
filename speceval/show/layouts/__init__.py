"""The tables of `speceval table`, one function per layout: entries (`entries.collect`) -> `form.Table`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from speceval.errors import UserError
from speceval.show.layouts.categories import categories
from speceval.show.layouts.entries import collect, few_conversations, undrafted
from speceval.show.layouts.form import Table
from speceval.show.layouts.lengths import lengths
from speceval.show.layouts.load import load
from speceval.show.layouts.paper import paper_arch, paper_main, paper_mean
from speceval.show.layouts.positions import positions
from speceval.show.layouts.replays import replays
from speceval.show.layouts.summary import summary

LAYOUTS: dict[str, Callable[..., Table]] = {
    "summary": summary,
    "paper-main": paper_main,
    "paper-arch": paper_arch,
    "paper-mean": paper_mean,
    "positions": positions,
    "categories": categories,
    "lengths": lengths,
    "load": load,
}

CHANGES = ("paper-arch", "paper-mean")
"""Layouts that show changes over another drafter."""


def build(layout: str, paths: Iterable[Path], over: str | None = None) -> Table:
    """The table of `layout` from run directories, folders of runs and published figures; see `entries.collect`.

    over: the drafter, or the setup, that Δ% is over; None: the one of the same architecture trained with KL. Where all
    runs are replays, `summary` is the table of `replays`.
    """
    entries = collect(paths)
    if entries and all(entry.replayed for entry in entries):
        if layout != "summary":
            raise UserError(f"--layout {layout}: counts, and these are replays, which hold expectations: leave it out")
        table = replays(entries, over)
    elif over is not None and layout not in CHANGES:
        raise UserError(f"--over: has no meaning with --layout {layout}: leave it out, or ask for {CHANGES[-1]}")
    else:
        table = LAYOUTS[layout](entries, over) if layout in CHANGES else LAYOUTS[layout](entries)
    return replace(table, notes=(*table.notes, *undrafted(entries), *few_conversations(entries)))
