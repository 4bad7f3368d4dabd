"""What `speceval compare` prints, from `comparison.compare_runs`."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from speceval.estimate.statistics import COVERS
from speceval.fitting import Fitting
from speceval.show.cells import plus_minus
from speceval.show.notes import INTERPRETED, interpreted
from speceval.show.tables import LOAD

LEVEL = 0.05


def comparison_tables(found: dict[str, Any]) -> RenderableType:
    """One table of acceptance lengths, one of positions for each suite, and what a reader must know to trust them."""
    suites = list(dict.fromkeys(row["suite"] for row in found["comparisons"]))
    rows = {suite: [row for row in found["comparisons"] if row["suite"] == suite] for suite in suites}
    positions = [_positions(suite, rows[suite], found["runs"]) for suite in suites]
    return Group(Fitting(_lengths(rows, found["runs"]), heads=2), *positions, *(Text(line) for line in _notes(found)))


def _lengths(rows: dict[str, list[dict[str, Any]]], runs: list[dict[str, Any]]) -> Table:
    """A line for each suite and run, with further ones for all decode steps where many had no drafts, and for the
    Rao-Blackwell estimates where both runs have them.
    """
    table = Table(title=Text(f"against {_label(runs[0])}"), title_justify="left")
    for heading in ("suite", "run", "tau a", "tau b", "Δtau", "Δ%", "p", "p (Holm)", "could have seen"):
        table.add_column(heading, justify="left" if heading in ("suite", "run") else "right", no_wrap=True)
    for suite, compared in rows.items():
        for row in compared:
            name = suite if row is compared[0] else ""
            table.add_row(Text(name), Text(_label(runs[row["run"] - 1])), *_cells(row))
            for words, more in (("  all steps", row["tau_all_steps"]), ("  Rao–Blackwell", row["tau_rb"])):
                if more:
                    table.add_row("", words, *_cells(more))
        table.add_section()
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    taus = (plus_minus(row[name]) for name in ("tau_a", "tau_b"))
    seen = row["detectable_percent"]
    return [
        *taus,
        signed(row["difference"], 3),
        signed(row["relative_percent"], 1),
        *(_p_value(row[name]) for name in ("p_value", "p_adjusted")),
        "n/a" if seen is None else f"±{seen:.1f} %",
    ]


def _positions(suite: str, compared: list[dict[str, Any]], runs: list[dict[str, Any]]) -> Fitting:
    title = Text(f"{suite}: P(position j accepted), run b - run a")
    table = Table("position", title=title, title_justify="left")
    for row in compared:
        table.add_column(Text(_label(runs[row["run"] - 1])), justify="right", no_wrap=True)
    for j in range(max(len(row["positions"]) for row in compared)):
        cells = (_rate(row["positions"][j]) if j < len(row["positions"]) else "" for row in compared)
        table.add_row(str(j + 1), *cells)
    return Fitting(table, by="columns")


def _rate(position: dict[str, Any]) -> str:
    """ "0.412 → 0.431  +0.019 [+0.004, +0.033] *"."""
    a, b = ("n/a" if position[run] is None else f"{position[run]:.3f}" for run in ("a", "b"))
    star = "*" if position["p_adjusted"] is not None and position["p_adjusted"] < LEVEL else " "
    return f"{a} → {b}  {signed(position['difference'], 3)} {star}"


def signed(interval: dict[str, Any], digits: int) -> str:
    """A difference with its interval: "+0.019 [+0.004, +0.033]"; "n/a" without a value."""
    if interval["value"] is None:
        return "n/a"
    if interval["low"] is None:
        return f"{interval['value']:+.{digits}f}"
    value, low, high = (f"{interval[name]:+.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _p_value(p: float | None) -> str:
    if p is None:
        return "n/a"
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _label(run: dict[str, Any]) -> str:
    return f"{run['number']} {run['draft']}"


def _notes(found: dict[str, Any]) -> list[str]:
    compared, runs = found["comparisons"], found["runs"]
    tests = sum(row["p_value"] is not None for row in compared)
    notes = [
        f"{COVERS} Each interval holds for itself.",
        "Δ and p are paired by conversation. p (Holm) is adjusted for all tests of the table "
        f"({tests}), * (p < 5 %) for the positions of a comparison.",
        "could have seen: the true Δ% that one test at 5 % finds in 80 % of cases: (its critical value + t_0.8) · se.",
    ]
    if any(row["tau_all_steps"] for row in compared):
        notes.append("all steps: tokens of a decode step, with drafts or without: a user's clock. Holm by itself.")
    if any(row["tau_rb"] for row in compared):
        notes.append("Rao–Blackwell: the same quantity with the chance of accepting integrated out, Holm by itself.")
    if runs[0]["replay"]:
        notes.append("replays: tau is `tau committed`, expected along the given texts.")
    modes = {run["drafting"] for run in runs}
    if len(modes) > 1:
        each = ", ".join(f"{run['number']} {run['drafting']}" for run in runs)
        notes.append(
            f"DRAFTING MODES DIFFER ({each}): sampled and greedy drafts are accepted with different quantities."
        )
    for compared_speed in found["speedups"]:
        notes += _speedup_notes(compared_speed)
    notes += _interpreted_notes(found)
    notes += [f"ALLOWED TO DIFFER: {line}" for line in found["allowed"]]
    warned: dict[str, list[str]] = {}
    for row in compared:
        where = f"{row['suite']}, run {row['run']}"
        notes += _row_notes(row, where) + _load_notes(row, where)
        for warning in row["warnings"]:
            warned.setdefault(warning, []).append(where)
    notes += [f"{'; '.join(places)}: {warning}." for warning, places in warned.items()]
    for run in runs:
        unfinished = ", UNFINISHED" if run["status"] == "running" else ""
        drafting = f"T={run['temperature']:g}, K={run['k']}, {run['drafting']} drafting"
        notes.append(f"run {run['number']}: {run['target']} with {run['draft']}, {drafting}{unfinished}: {run['run']}")
        notes += [f"PROBLEM in run {run['number']}: {problem}" for problem in run["problems"]]
    return notes


def _speedup_notes(found: dict[str, Any]) -> list[str]:
    notes = [
        f"{row['suite']}, run {found['run']}: speed-up at batch {row['batch']} {plus_minus(row['a'], 2)} → "
        f"{plus_minus(row['b'], 2)}, {signed(row['relative_percent'], 1)} %."
        for row in found["rows"]
    ]
    return notes + ([f"run {found['run']}: {found['refused']}."] if found["refused"] else [])


def _interpreted_notes(found: dict[str, Any]) -> list[str]:
    """Of runs whose times are compared above and are none of vLLM's."""
    if not any(row["rows"] for row in found["speedups"]) and not any(row.get("load") for row in found["comparisons"]):
        return []
    numbers = [run["number"] for run in found["runs"] if interpreted(run["device"], run["runner"])]
    return [f"times of run {number}: {INTERPRETED}." for number in numbers]


def _load_notes(row: dict[str, Any], where: str) -> list[str]:
    """Mean times of both runs, where both have them."""
    return [
        f"{where}: {LOAD[kind]} mean {plus_minus(found['a'], 1)} → {plus_minus(found['b'], 1)} ms, "
        f"{signed(found['relative_percent'], 1)} %."
        for kind, found in row.get("load", {}).items()
    ]


def _row_notes(row: dict[str, Any], where: str) -> list[str]:
    notes = [f"{where}: {row['conversations']} conversations, {row['samples']} samples."]
    if row["pair_by"] == "conversation":
        notes[0] += " No seed is in both runs: all seeds of a conversation count together."
    left = [f"{row[f'only_{side}']} requests in run {number} only" for side, number in (("a", 1), ("b", row["run"]))]
    missing = [line for line, side in zip(left, "ab", strict=True) if row[f"only_{side}"]]
    if missing:
        notes.append(f"{where}: left out: {', '.join(missing)}.")
    for side, number in (("a", 1), ("b", row["run"])):
        if line := row.get("undrafted", {}).get(side):
            notes.append(f"{row['suite']}, run {number}: {line}.")
    return notes
