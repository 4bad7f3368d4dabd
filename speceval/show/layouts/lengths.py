"""`lengths`: tau by the place in the output and by the length of the context, and how many answers were cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speceval.errors import UserError
from speceval.estimate import books
from speceval.estimate.lengths import by_length, contexts, starts, truncated, whole
from speceval.estimate.parts import Part, of_part
from speceval.show.cells import plus_minus
from speceval.show.layouts.cells import INTERVALS, number
from speceval.show.layouts.entries import Entry
from speceval.show.layouts.form import Cell, Column, Row, Table
from speceval.show.layouts.positions import run_heading
from speceval.store import thoughts

DECIMALS = 3


def lengths(entries: Sequence[Entry]) -> Table:
    """A row for each power of two, of the output so far and of the context, of every run and suite."""
    measured = [entry for entry in entries if entry.measured]
    if not measured:
        raise UserError("--layout lengths: published figures say nothing of lengths: name a run")
    return Table(
        layout="lengths",
        caption="Acceptance length tau by the tokens that are there when a step starts.",
        columns=(
            Column(("of",), "left"),
            *(Column((name,)) for name in ("tokens", "tau", "conversations", "steps")),
        ),
        rows=tuple(row for entry in measured for row in _rows(entry)),
        section_heading="run",
        notes=(
            "Thought and answer: of requests that begin with a thought, the steps that start before its end and after. "
            "Output: tokens of the answer so far. Context: those and the prompt's. Long answers are of other prompts "
            "than short ones: a row is not the row before with more tokens.",
            INTERVALS,
        ),
    )


def _rows(entry: Entry) -> list[Row]:
    assert entry.run is not None
    books.require_order(entry.run, "--layout lengths")
    steps, turns = entry.run.suite(entry.name)
    rows = []
    told = thoughts(entry.run.directory)
    told = {key: count for key, count in told.items() if key[0] == entry.name}
    for kind in ("thought", "answer") if told else ():
        part = of_part(Part(kind), steps, turns, told)
        if len(part):
            rows.append(Row(_part_cells(entry, kind, whole(part, entry.k)), run_heading(entry)))
    for kind, of in (("output", starts(steps)), ("context", contexts(steps, turns))):
        rows += [Row(_cells(entry, kind, row), run_heading(entry)) for row in by_length(steps, of, entry.k)]
    share = truncated(turns)
    if share is not None:
        facts = number(entry.facts, "truncated", {"value": share, "low": None, "high": None}, len(turns))
        cells = (Cell("answers cut by max_tokens"), Cell(), Cell(f"{100 * share:.1f} %", facts), Cell(), Cell())
        rows.append(Row(cells, run_heading(entry)))
    return rows


def _part_cells(entry: Entry, kind: str, row: dict[str, Any]) -> tuple[Cell, ...]:
    facts = entry.facts | {"category": kind}
    return (
        Cell(kind),
        Cell(),
        Cell(plus_minus(row, DECIMALS), number(facts, "tau", row, row["conversations"])),
        Cell(f"{row['conversations']:,}"),
        Cell(f"{row['steps']:,}"),
    )


def _cells(entry: Entry, kind: str, row: dict[str, Any]) -> tuple[Cell, ...]:
    tokens = f"{row['least']:,}–{row['most']:,}"
    facts = entry.facts | {"category": f"{kind} {row['least']}-{row['most']}"}
    return (
        Cell(kind),
        Cell(tokens),
        Cell(plus_minus(row, DECIMALS), number(facts, "tau", row, row["conversations"])),
        Cell(f"{row['conversations']:,}"),
        Cell(f"{row['steps']:,}"),
    )
