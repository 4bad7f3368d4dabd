"""What `speceval explain` prints, from `explain.explain_run`."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

NOTE = (
    "Each definition is applied to this run's own turns and steps. What a tool's own settings would have generated "
    "instead cannot be computed from them; docs/trust/other-tools.md in the repository has every formula."
)


def explanation_tables(found: dict[str, Any]) -> RenderableType:
    """A table for each suite, and what a reader must know of the run."""
    tables = (_table(suite, shown) for suite, shown in found["suites"].items())
    return Group(*tables, *(Text(line) for line in (NOTE, *_marks(found))))


def _table(suite: str, shown: dict[str, Any]) -> Table:
    tau = "n/a" if shown["tau"] is None else f"{shown['tau']:.4f}"
    table = Table(title=Text(f"{suite}: tau {tau}"), title_justify="left", show_lines=True)
    table.add_column("tool", ratio=3, overflow="fold")
    table.add_column("prints", justify="right", no_wrap=True)
    table.add_column("- tau", justify="right", no_wrap=True)
    table.add_column("why", ratio=8, overflow="fold")
    for row in shown["tools"]:
        value, difference = row["value"], row["difference"]
        lines = [row["reason"]]
        if row["positions_are"]:
            rates = " ".join("-" if rate is None else f"{rate:.3f}" for rate in row["positions"])
            lines.append(f"positions: {rates} ({row['positions_are']})")
        table.add_row(
            Text(f"{row['tool']}: {row['quantity']} ({row['read_in']})"),
            "n/a" if value is None else f"{value:.4f}",
            "n/a" if difference is None else f"{difference:+.4f}",
            Text("\n".join(lines)),
        )
    return table


def _marks(found: dict[str, Any]) -> list[str]:
    """What a reader must know of the run itself."""
    lines = ["The run is UNFINISHED: these are the conversations so far."] if found["status"] == "running" else []
    return lines + [f"PROBLEM: {problem}" for problem in found["problems"]]
