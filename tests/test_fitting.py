"""Tables on terminals that are narrower than they are: nothing is cut, and nothing goes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from speceval.estimate import comparison
from speceval.fitting import Fitting
from speceval.show import layouts, listings, render
from speceval.show.comparison import comparison_tables
from speceval.show.tables import run_tables
from speceval.store import read_run

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "results" / "reference" / "demo"
RUNS = [DEMO / "kl-eagle3-T1-probabilistic", DEMO / "lk-eagle3-T1-probabilistic"]


def printed(what: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def table(columns: int = 3, rows: int = 2) -> Table:
    shown = Table()
    for number in range(columns):
        shown.add_column(f"heading {number}", no_wrap=True)
    for row in range(rows):
        shown.add_row(*(f"cell-{row}-{number}" for number in range(columns)))
    return shown


@pytest.mark.parametrize("by", ["rows", "lines", "columns"])
@pytest.mark.parametrize("width", [26, 30, 40, 60, 200])
def test_every_cell_is_whole_at_every_width(by: Any, width: int) -> None:
    text = printed(Fitting(table(6), by), width)
    assert all(f"cell-{row}-{number}" in text for row in range(2) for number in range(6))
    assert "…" not in text and max(map(len, text.splitlines())) <= width


def test_a_table_that_fits_is_printed_as_it_is_and_one_that_nearly_does_gets_narrow_headings() -> None:
    assert printed(Fitting(table()), 80) == printed(table(), 80)
    narrow = printed(Fitting(table()), 34)
    assert "heading 0" not in narrow and "heading" in narrow and "┏" in narrow and "cell-1-2" in narrow
    assert "┏" not in printed(Fitting(table()), 33)


def test_columns_come_in_pieces_that_each_begin_with_the_first() -> None:
    text = printed(Fitting(table(6), "columns"), 40)
    assert text.count("cell-0-0") == 3 and text.count("cell-0-5") == 1


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("what", ["compare", "show", "targets", "drafters", "suites", "runs", "table"])
def test_what_commands_print_can_be_read_on_a_narrow_terminal(what: str, width: int) -> None:
    def made() -> Any:
        if what == "compare":
            return comparison_tables(comparison.compare_runs([read_run(run) for run in RUNS]))
        if what == "show":
            return run_tables(read_run(RUNS[0]))
        if what == "table":
            return render.terminal(layouts.build("summary", RUNS, None))
        return listings.show(what, DEMO)

    narrow, wide = printed(made(), width), printed(made(), 1000)
    assert "…" not in narrow and max(map(len, narrow.splitlines())) <= width
    words = {word for word in wide.split() if any(map(str.isalnum, word)) and len(word) < 40}
    joined = "".join(narrow.split())
    headings = {"target", "draft", "run", "suite", "drafter", "drafting"}  # of what stands in a line of its own
    assert [word for word in words if word not in joined and word not in headings] == []
