"""`categories`: tau by the suite's categories (MT-Bench has eight) and by turn."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from speceval.errors import UserError
from speceval.estimate import acceptance
from speceval.show.cells import plus_minus
from speceval.show.layouts.cells import INTERVALS, NONE, number
from speceval.show.layouts.entries import Entry
from speceval.show.layouts.form import Cell, Column, Row, Table
from speceval.show.layouts.positions import run_heading

ALL = "all"
DECIMALS = 3


def categories(entries: Sequence[Entry]) -> Table:
    """A row per category of every run and suite, per group of them, and for all; a column per turn, and one for all."""
    measured = [entry for entry in entries if entry.measured]
    if not measured:
        raise UserError("--layout categories: published figures say nothing of categories: name a run")
    last = max(int(entry.run.turns["turn"].max()) for entry in measured if entry.run and len(entry.run.turns))
    turns: list[int | None] = [*range(1, last + 1), None] if last > 1 else [None]
    return Table(
        layout="categories",
        caption="Acceptance length tau by category and turn.",
        columns=(
            Column(("category",), "left"),
            *(Column((f"turn {turn}" if turn else "all turns",)) for turn in turns),
            Column(("conversations",)),
        ),
        rows=tuple(row for entry in measured for row in _rows(entry, turns)),
        section_heading="run",
        notes=(INTERVALS, "One test per category would need a correction: read differences between them with care."),
    )


def _rows(entry: Entry, turns: Sequence[int | None]) -> list[Row]:
    assert entry.run is not None
    steps, mine = entry.run.suite(entry.name)
    of = mine["category"].astype(str)
    names = sorted(mine["category"].dropna().astype(str).unique())
    parts = {name: mine[of == name] for name in names} if len(names) > 1 else {}
    for group, members in entry.run.meta.groups.get(entry.name, {}).items():
        parts[f"{group} (group)"] = mine[of.isin(members)]
    rows = []
    for name, of_category in (parts | {ALL: mine}).items():
        cells = [_cell(entry, name, turn, of_category, steps) for turn in turns]
        count = of_category["conversation"].nunique()
        rows.append(Row((Cell(name), *cells, Cell(f"{count:,}")), run_heading(entry)))
    return rows


def _cell(entry: Entry, category: str, turn: int | None, turns: pd.DataFrame, steps: pd.DataFrame) -> Cell:
    """tau of one category at one turn (None: all)."""
    if turn is not None:
        turns, steps = turns[turns["turn"] == turn], steps[steps["turn"] == turn]
    if turns.empty:
        return NONE
    steps = steps[steps["conversation"].isin(turns["conversation"])]
    interval = acceptance.summarise(steps, turns, entry.k)["tau"]
    facts = entry.facts | {"category": category, "turn": turn}
    return Cell(plus_minus(interval, DECIMALS), number(facts, "tau", interval, turns["conversation"].nunique()))
