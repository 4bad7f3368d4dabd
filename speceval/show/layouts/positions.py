"""`positions`: acceptance by draft position, unconditional and conditional, with the counts behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speceval.errors import UserError
from speceval.estimate import books
from speceval.show.layouts.cells import INTERVALS, NONE, number
from speceval.show.layouts.entries import Entry
from speceval.show.layouts.form import Cell, Column, Row, Table

KINDS = (("unconditional", "drafted"), ("conditional", "reached"))
"""Each rate and the count that it is a share of."""


def positions(entries: Sequence[Entry]) -> Table:
    """A row per position of every run and suite."""
    measured = [entry for entry in entries if entry.measured]
    for entry in measured:
        assert entry.run is not None
        books.require_positions(entry.run, "--layout positions")
    if not measured:
        raise UserError("--layout positions: published figures say nothing of positions: name a run")
    counts = [
        Column((name,)) for name in ("position", "accepted", "drafted", "unconditional", "reached", "conditional")
    ]
    return Table(
        layout="positions",
        caption="Acceptance by draft position.",
        columns=tuple(counts),
        rows=tuple(
            Row(_cells(entry, position), run_heading(entry))
            for entry in measured
            for position in entry.summary["positions"]
        ),
        section_heading="run",
        notes=(
            "Unconditional: accepted / drafted, of the steps that draft the position. Conditional: accepted / reached, "
            "of those that accept every position before it.",
            INTERVALS,
        ),
    )


def run_heading(entry: Entry) -> str:
    """What heads the rows of one run and suite."""
    return f"{entry.target} · {entry.label} · {entry.suite} · T={entry.temperature:g} · K={entry.k} · {entry.drafting}"


def _cells(entry: Entry, position: Mapping[str, Any]) -> tuple[Cell, ...]:
    facts = entry.facts | {"position": position["position"]}
    shown = [Cell(str(position["position"])), _count(facts, position, "accepted")]
    for kind, share_of in KINDS:
        interval = {"value": position[kind], "low": position[f"{kind}_low"], "high": position[f"{kind}_high"]}
        rate = Cell(_rate(interval), number(facts, kind, interval, position[share_of]))
        shown += [_count(facts, position, share_of), rate if interval["value"] is not None else NONE]
    return tuple(shown)


def _count(facts: Mapping[str, Any], position: Mapping[str, Any], name: str) -> Cell:
    return Cell(f"{position[name]:,}", number(facts, name, {"value": position[name], "low": None, "high": None}))


def _rate(interval: Mapping[str, float | None]) -> str:
    if interval["low"] is None:
        return "n/a" if interval["value"] is None else f"{interval['value']:.3f}"
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
