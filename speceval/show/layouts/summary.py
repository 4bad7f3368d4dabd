"""`summary`: a row for every drafter, suite and temperature, with every definition of tau."""

from __future__ import annotations

from collections.abc import Sequence

from speceval.show import published
from speceval.show.layouts.best import find_best
from speceval.show.layouts.cells import (
    NONE,
    PAPER,
    drafter_cell,
    explain,
    not_judged,
    number,
    repeats,
    source_line,
    tau_cell,
    unique,
)
from speceval.show.layouts.entries import Entry
from speceval.show.layouts.form import Cell, Column, Row, Table
from speceval.show.tables import TAUS

DECIMALS = 3
DEFINITION = "tau"
"""The acceptance length that is tested and shown in bold."""
REPEATED = (
    "Repeated: whether tau paper differs from the published figure by no more than sampling and rounding do on the "
    "same prompts; its interval is over new prompts and does not answer that."
)


def summary(entries: Sequence[Entry]) -> Table:
    """tau by drafter, suite and temperature; beside it the published figure where the catalog knows one."""
    repeated = {entry.published for entry in entries if entry.measured}
    entries = [entry for entry in entries if entry.measured or entry.figure not in repeated]
    best = find_best([entry for entry in entries if entry.measured], DEFINITION)
    taus = [name for name in TAUS if _measured(entries, name)]
    with_figures = any(entry.published for entry in entries)
    several = len({entry.architecture for entry in entries}) > 1
    columns = [
        *(Column((name,), "left") for name in ("drafter", *(["architecture"] if several else []), "drafting", "suite")),
        *(Column((name,)) for name in ("K", "T", *(TAUS[name] for name in taus), "conversations", "steps")),
        *((Column(("published",)), Column(("repeated",), "left")) if with_figures else ()),
    ]
    rows = []
    for entry in entries:
        cells = [
            drafter_cell([entry]),
            *([Cell(entry.architecture)] if several else []),
            *(Cell(text) for text in (entry.drafting, entry.suite, str(entry.k), f"{entry.temperature:g}")),
        ]
        if entry.measured:
            cells += [tau_cell(entry, name, best if name == DEFINITION else None, DECIMALS) for name in taus]
            cells += [_count(entry, name) for name in ("conversations", "steps")]
        else:
            cells += [NONE] * (len(taus) + 2)
        if with_figures:
            cells += _figure(entry)
        rows.append(Row(tuple(cells), entry.target))
    notes = explain([entry for entry in entries if entry.measured], best)
    if with_figures:
        notes += [source_line(), REPEATED]
    return Table(
        layout="summary",
        caption="Acceptance length by drafter, suite and temperature.",
        columns=tuple(columns),
        rows=tuple(rows),
        section_heading="target",
        notes=tuple(unique(notes)),
    )


def _measured(entries: Sequence[Entry], name: str) -> bool:
    return any(entry.measured and entry.tau(name)["value"] is not None for entry in entries)


def _count(entry: Entry, name: str) -> Cell:
    count = entry.summary[name]
    return Cell(f"{count:,}", number(entry.facts, name, {"value": count, "low": None, "high": None}))


def _figure(entry: Entry) -> list[Cell]:
    if entry.published is None:
        return [NONE, NONE]
    if entry.figure is not None:
        return [tau_cell(entry, PAPER, None, published.load().decimals), NONE]
    inside, why = repeats(entry), not_judged(entry)
    answer = "n/a" if inside is None else "yes" if inside else "no"
    publication = published.load()
    notes = (*publication.row_notes(entry.published), *publication.notes(entry.published))
    return [Cell(f"{entry.published.tau:.2f}", notes=notes), Cell(answer, notes=(why,) if why else ())]
