"""The layouts of LK Losses' tables (arXiv 2602.23881): suites and temperatures are columns, drafters rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from speceval.errors import UserError
from speceval.show import published
from speceval.show.cells import plus_minus
from speceval.show.layouts.best import Best, column_group, find_best, mean_change, mean_tau, reason
from speceval.show.layouts.cells import (
    GROUP,
    NONE,
    OUTSIDE,
    PAPER,
    drafter_cell,
    explain,
    not_judged,
    number,
    percent,
    repeats,
    tau_cell,
    unique,
)
from speceval.show.layouts.entries import KL, Entry, refuse_twice, row_key, with_published
from speceval.show.layouts.form import Cell, Column, Row, Table

DECIMALS = 2
"""Of every acceptance length and speed-up, as the paper prints them."""

Cells = Callable[[float, Sequence[Entry]], list[Cell]]
"""The cells of one temperature in one row, from the row's entries at that temperature."""


def paper_main(entries: Sequence[Entry]) -> Table:
    """Its Table 4: every target, drafter, suite and temperature, with tau and speed-up."""
    entries = _prepare(entries)
    best = find_best(entries, PAPER)
    suites = unique(entry.suite for entry in entries)

    def cells(_: float, row: Sequence[Entry]) -> list[Cell]:
        by_suite = {entry.suite: entry for entry in row}
        found: list[Cell] = []
        for suite in suites:
            entry = by_suite.get(suite)
            found += [_tau(entry, best), _speedup(entry)] if entry else [NONE, NONE]
        return found

    headings = [(suite, heading) for suite in suites for heading in ("tau", "speed-up")]
    caption = "Acceptance length tau and speed-up by target, drafter, temperature and suite."
    batches = sorted({entry.speedup_batch for entry in entries if entry.speedup_batch is not None})
    timed = [f"Measured speed-up: at batch {', '.join(map(str, batches))}."] if batches else []
    return _table("paper-main", caption, entries, headings, cells, [*explain(entries, best), *timed])


def paper_arch(entries: Sequence[Entry], baseline: str | None = None) -> Table:
    """Its Table 1: drafter architectures by loss, for targets with more than one architecture (all, if none has)."""
    entries = _prepare(entries)
    several = {
        target
        for target in {entry.target for entry in entries}
        if len({entry.architecture for entry in entries if entry.target == target}) > 1
    }
    kept = [entry for entry in entries if entry.target in several] or entries
    notes = [] if len(kept) == len(entries) else ["Targets with drafters of one architecture alone are left out."]
    table = _means(
        "paper-arch",
        "Acceptance length tau of drafter architectures by loss.",
        kept,
        baseline,
        by_architecture=True,
    )
    return replace(table, notes=(*table.notes, *notes))


def paper_mean(entries: Sequence[Entry], baseline: str | None = None) -> Table:
    """Its Table 2: tau by suite, its mean over the suites, and how many percent that is above the baseline's."""
    caption = "Acceptance length tau, its mean over suites, and its change over a baseline."
    return _means("paper-mean", caption, _prepare(entries), baseline)


def _means(
    layout: str,
    caption: str,
    entries: Sequence[Entry],
    baseline: str | None,
    by_architecture: bool = False,
) -> Table:
    names = unique(name for entry in entries for name in (entry.drafter, entry.setup))
    if baseline is not None and baseline not in names:
        raise UserError(f"--over {baseline}: no such drafter in these runs; there are {', '.join(names)}")
    best = find_best(entries, PAPER, _architecture_group if by_architecture else column_group)
    suites = unique(entry.suite for entry in entries)
    problems: dict[str, list[str]] = {}  # why there is no Δ% -> of which drafters

    def cells(temperature: float, row: Sequence[Entry]) -> list[Cell]:
        by_suite = {entry.suite: entry for entry in row}
        found = [_tau(by_suite[suite], best) if suite in by_suite else NONE for suite in suites]
        wanted = {e.suite for e in entries if row and e.target == row[0].target and e.temperature == temperature}
        if set(by_suite) != wanted or not row:  # a mean over other suites would not compare
            return [*found, *(NONE for _ in over_suites)]
        if len(suites) > 1:
            found.append(_mean(row))
        return [*found, _change(row, entries, baseline, problems)]

    over_suites = ["mean", "Δ%"] if len(suites) > 1 else ["Δ%"]
    headings = [(heading,) for heading in (*suites, *over_suites)]
    called = f"called {baseline}" if baseline is not None else f"trained with {KL}"
    over = f"the drafter of the same target, architecture, K and drafting {called}"
    notes = [
        *explain(entries, best, f"architecture, {GROUP}" if by_architecture else GROUP),
        f"Δ%: of {'the mean over suites' if len(suites) > 1 else 'tau'}, over {over}, where there is one"
        + (
            "; of tau, paired by conversation, with a 95 % interval for each comparison by itself."
            if any(entry.measured for entry in entries)
            else "."
        ),
    ]
    table = _table(layout, caption, entries, headings, cells, notes, by_architecture)
    refused = (f"No Δ% of {', '.join(unique(drafters))}: {why}." for why, drafters in problems.items())
    return replace(table, notes=(*table.notes, *refused))


def _table(
    layout: str,
    caption: str,
    entries: Sequence[Entry],
    headings: Sequence[tuple[str, ...]],
    cells: Cells,
    notes: Sequence[str],
    by_architecture: bool = False,
) -> Table:
    """Rows by `row_key`; columns: labels, then `headings` under each temperature, filled by `cells`."""
    rows: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        rows.setdefault(row_key(entry), []).append(entry)
    temperatures = sorted({entry.temperature for entry in entries})
    shown = {
        "architecture": not by_architecture,
        "K": True,
        "drafter": True,
        "source": len({entry.measured for entry in entries}) > 1,
    }
    labels = [label for label, wanted in shown.items() if wanted]
    empty = ("",) * len(headings[0])
    return Table(
        layout=layout,
        caption=caption,
        columns=(
            *(Column((*empty, label), "right" if label == "K" else "left") for label in labels),
            *(Column((f"T = {temperature:g}", *heading)) for temperature in temperatures for heading in headings),
        ),
        rows=tuple(
            Row(
                cells=(
                    *(cell for label, cell in _labels(row).items() if label in labels),
                    *(
                        cell
                        for temperature in temperatures
                        for cell in cells(temperature, [entry for entry in row if entry.temperature == temperature])
                    ),
                ),
                section=f"{row[0].target} · {row[0].architecture}" if by_architecture else row[0].target,
            )
            for row in rows.values()
        ),
        section_heading="target · architecture" if by_architecture else "target",
        notes=(*notes, *_definitions(entries)),
    )


def _architecture_group(entry: Entry) -> Hashable:
    return entry.architecture, column_group(entry)


def _prepare(entries: Sequence[Entry]) -> list[Entry]:
    refuse_twice(entries)
    return with_published(entries)


def _labels(row: Sequence[Entry]) -> dict[str, Cell]:
    entry = row[0]
    greedy = any(entry.temperature > 0 and not entry.usual_drafting for entry in row)
    return {
        "architecture": Cell(entry.architecture),
        "K": Cell(str(entry.k)),
        "drafter": drafter_cell(row, ", greedy drafts" if greedy else ""),
        "source": Cell(_source(entry)),
    }


def _tau(entry: Entry, best: Best) -> Cell:
    cell = tau_cell(entry, PAPER, best, DECIMALS)
    note = not_judged(entry) or (OUTSIDE if entry.measured and repeats(entry) is False else None)
    return cell if note is None else Cell(cell.text, cell.facts, cell.bold, (*cell.notes, note))


def _speedup(entry: Entry) -> Cell:
    interval = entry.speedup
    if interval["value"] is None:
        return NONE
    facts = number(entry.facts, "speedup", interval, batch=entry.speedup_batch)
    return Cell(plus_minus(dict(interval), DECIMALS), facts, notes=entry.times_notes)


def _mean(row: Sequence[Entry]) -> Cell:
    interval = mean_tau(row, PAPER)
    notes = published.load().mean_notes(row[0].figure) if row[0].figure else ()
    facts = row[0].facts | {"suite": "mean"}
    return Cell(plus_minus(dict(interval), DECIMALS), number(facts, PAPER, interval), notes=notes)


def _change(row: Sequence[Entry], entries: Sequence[Entry], name: str | None, problems: dict[str, list[str]]) -> Cell:
    """Δ% of a row over its baseline; where there is none although one may be expected, `problems` gets the reason."""
    try:
        over = {entry.suite: entry for entry in _baseline(row, entries, name)}
        if not over:
            return NONE
        if over.keys() != {entry.suite for entry in row}:
            raise UserError(f"its baseline has no figure on all the suites, only on {', '.join(over)}")
        interval = mean_change([(over[entry.suite], entry) for entry in row])
    except UserError as error:
        problems.setdefault(reason(error), []).append(row[0].drafter)
        return NONE
    drafter = next(iter(over.values())).drafter
    facts = number(row[0].facts | {"suite": "mean"}, f"percent over {drafter}", interval)
    return Cell(percent(interval), facts)


def _baseline(row: Sequence[Entry], entries: Sequence[Entry], name: str | None) -> list[Entry]:
    """The entries that Δ% of a row is over; empty for the baseline itself, and where no KL drafter is by default.

    A name need not be unique: the same loss has trained drafters of several architectures, targets and K. So it means
    the one of the row's own target, architecture, K, temperature and drafting. Raises `UserError` when a named one is
    not among them, or several are.
    """
    first = row[0]
    fitting = [
        entry
        for entry in entries
        if _condition(entry) == _condition(first)
        and (entry.setup == KL if name is None else name in (entry.drafter, entry.setup))
    ]
    called = {row_key(entry): entry for entry in fitting}
    if len(called) > 1:
        names = ", ".join(entry.drafter for entry in called.values())
        raise UserError(
            f"{len(called)} drafters of its architecture and K are {name or KL} ({names}): name one of them"
        )
    if row_key(first) in called:
        return []
    if name is not None and not called:
        where = f"{first.target}, {first.architecture}, K={first.k} at the same temperature and drafting"
        raise UserError(f"{name} is not among the {_source(first)} drafters of {where}")
    return fitting


def _condition(entry: Entry) -> Hashable:
    """What a row and its baseline have in common."""
    return entry.target, entry.architecture, entry.k, entry.temperature, entry.drafting, entry.measured


def _source(entry: Entry) -> str:
    return "measured" if entry.measured else "published"


def _definitions(entries: Sequence[Entry]) -> list[str]:
    """What tau is here, and how far vLLM's differs from it in these runs."""
    line = "tau here is 1 + K · accepted / drafted (tau paper)"
    pairs = [(entry.tau(PAPER)["value"], entry.tau("tau")["value"]) for entry in entries if entry.measured]
    gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    if not gaps:
        return [f"{line}."]
    if max(gaps) < 0.5 * 10.0**-DECIMALS:
        return [f"{line}; tests and Δ% are of 1 + accepted / steps (tau), which is the same here to these digits."]
    return [f"{line}; tests and Δ% are of 1 + accepted / steps (tau), which differs by up to {max(gaps):.2f}."]
