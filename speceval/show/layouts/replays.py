"""The table of replays: what drafters are expected to commit along the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speceval.errors import NotComparable, UserError
from speceval.estimate.comparison import compare_runs
from speceval.estimate.statistics import holm
from speceval.show.cells import plus_minus
from speceval.show.layouts.best import reason
from speceval.show.layouts.cells import INTERVALS, NONE, number, percent, unique
from speceval.show.layouts.entries import KL, Entry
from speceval.show.layouts.form import Cell, Column, Row, Table

DECIMALS = 3
DEFINITION = "tau_committed"
COUNTS = {"expected_steps": "expected steps", "text_tokens": "tokens of the texts"}


def replays(entries: Sequence[Entry], over: str | None = None) -> Table:
    """A row for every drafter and suite; Δ% over the drafter `over`, else the one trained with KL, where there is one.

    Raises `UserError` when no run is of a drafter called `over`.
    """
    names = unique(name for entry in entries for name in (entry.drafter, entry.setup))
    if over is not None and over not in names:
        raise UserError(f"--over {over}: no such drafter in these runs; there are {', '.join(names)}")
    changes, problems = _changes(entries, over)
    heads = ("tau committed", *COUNTS.values(), *(["Δ%", "p (Holm)"] if changes else []))
    rows = []
    for entry in entries:
        cells = [Cell(text) for text in (entry.label, entry.architecture, entry.suite)]
        cells += [Cell(str(entry.k)), Cell(f"{entry.temperature:g}")]
        interval = entry.tau(DEFINITION)
        conversations = entry.summary["conversations"]
        cells.append(Cell(plus_minus(interval, DECIMALS), number(entry.facts, DEFINITION, interval, conversations)))
        cells += [_count(entry, name) for name in COUNTS]
        if changes:
            cells += _change(entry, changes.get((str(entry.facts["run"]), entry.name)))
        rows.append(Row(tuple(cells), entry.target))
    called = f"called {over}" if over is not None else f"trained with {KL}"
    notes = [
        "Replays: tokens that a step is expected to commit along the given texts; nothing was drawn.",
        *(
            [f"Δ%: over the drafter of the same target, architecture and K {called}, paired by request."]
            * bool(changes)
        ),
        *(f"No Δ% of {drafter}: {why}." for drafter, why in problems),
        INTERVALS,
    ]
    return Table(
        layout="replays",
        caption="Acceptance length along given texts.",
        columns=(
            *(Column((name,), "left") for name in ("drafter", "architecture", "suite")),
            *(Column((name,)) for name in ("K", "T", *heads)),
        ),
        rows=tuple(rows),
        section_heading="target",
        notes=tuple(unique(notes)),
    )


def _changes(
    entries: Sequence[Entry], over: str | None
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[tuple[str, str]]]:
    """By run and suite what it is over its baseline, with Holm's p over all; drafters without one, and why."""
    runs = {str(entry.run.directory): entry for entry in entries if entry.run is not None}
    bases = {name for name, entry in runs.items() if (over or KL) in (entry.setup, *([entry.drafter] if over else []))}
    changes: dict[tuple[str, str], dict[str, Any]] = {}
    problems: list[tuple[str, str]] = []
    for name in (name for name in runs if name not in bases):
        try:
            compared = _over_one(runs[name], [runs[base] for base in sorted(bases)], over)
        except UserError as error:
            problems.append((runs[name].label, reason(error)))
            continue
        changes |= {(name, row["suite"]): row for row in compared}
    adjusted = holm([row["p_value"] for row in changes.values()])
    for row, p in zip(changes.values(), adjusted, strict=True):
        row["p_adjusted"] = p
    return changes, problems


def _over_one(entry: Entry, bases: Sequence[Entry], over: str | None) -> list[dict[str, Any]]:
    """The comparisons of a run with the one base of its kind along its texts; none where there is no KL by default.

    A name need not be unique: another architecture's drafter bears it, or another training seed's. Raises `UserError`
    when a named one is not there, when several are, and when it is not comparable.
    """
    fitting = [base for base in bases if _group(base) == _group(entry)]
    if over is not None and not fitting:
        where = f"{entry.target}, {entry.architecture}, K={entry.k} at the same temperature and drafting"
        raise UserError(f"{over} is not among the replays of {where}")
    found: list[list[dict[str, Any]]] = []
    refusals: list[UserError] = []
    for base in fitting:
        try:
            found.append(compare_runs([run for each in (base, entry) if (run := each.run)])["comparisons"])
        except NotComparable as error:
            refusals.append(error)
    if len(found) > 1:
        names = ", ".join(str(base.facts["run"]) for base in fitting)
        raise UserError(f"{len(found)} replays of its architecture and K are {over or KL} ({names}): name one of them")
    if not found and refusals:
        raise refusals[0]
    return found[0] if found else []


def _group(entry: Entry) -> tuple[Any, ...]:
    return entry.target, entry.architecture, entry.k, entry.temperature, entry.drafting


def _change(entry: Entry, row: dict[str, Any] | None) -> list[Cell]:
    if row is None:
        return [NONE, NONE]
    change, p = row["relative_percent"], row["p_adjusted"]
    bounds = {"value": p, "low": None, "high": None}
    return [
        Cell(percent(change), number(entry.facts, "percent over the baseline", change, row["conversations"])),
        NONE if p is None else Cell(f"{p:.2g}", number(entry.facts, "p_adjusted", bounds)),
    ]


def _count(entry: Entry, name: str) -> Cell:
    count = entry.summary[name]
    return Cell(f"{count:,.0f}", number(entry.facts, name, {"value": count, "low": None, "high": None}))
