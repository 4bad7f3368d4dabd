"""What every table layout gives and every renderer takes: rows of cells under grouped headings, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FIELDS = (
    "target", "architecture", "setup", "drafter", "k", "temperature", "drafting", "suite", "category", "turn",
    "position", "batch", "definition", "value", "low", "high", "n", "best", "published", "contains_published", "source",
    "run", "footnotes",
)  # fmt: skip
"""What csv and json say of each number, under these names in every layout; what does not apply is empty.

`definition` names the estimator (docs/trust/how-sure.md) or says what was counted; `low` and `high` bound the 95 %
interval; `n` is the number of conversations, or of steps for a position; `best`: shown in bold; `published`: the figure
that a run repeats, and whether it does, within sampling and rounding (`cells.repeats`); `source`: "measured", or where
it was published.
"""


@dataclass(frozen=True)
class Cell:
    """One cell. Text is unescaped: it may hold anything that a user's file names hold."""

    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The number behind the text, by the names of `FIELDS`; empty for labels and empty cells."""
    bold: bool = False
    notes: tuple[str, ...] = ()
    """Texts of footnotes; equal texts get one mark."""


@dataclass(frozen=True)
class Column:
    """A column. `headings` from the outermost to the column's own; equal neighbours are one heading over both."""

    headings: tuple[str, ...]
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Row:
    """Cells in the columns' order. `section` heads the rows that share it; they follow each other."""

    cells: tuple[Cell, ...]
    section: str = ""


@dataclass(frozen=True)
class Table:
    """A table. All columns have equally many headings, all rows as many cells as there are columns."""

    layout: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    section_heading: str = ""
    """What the sections are ("target"); empty without sections."""
    notes: tuple[str, ...] = ()
    """Lines below the table."""

    @property
    def footnotes(self) -> dict[str, str]:
        """Text -> mark (a, b, … z, aa, …), in the order in which they appear."""
        texts = dict.fromkeys(note for row in self.rows for cell in row.cells for note in cell.notes)
        return {text: _mark(number) for number, text in enumerate(texts)}

    @property
    def records(self) -> list[dict[str, Any]]:
        """One record per number, with all of `FIELDS`."""
        cells = (cell for row in self.rows for cell in row.cells if cell.facts)
        return [
            dict.fromkeys(FIELDS) | dict(cell.facts) | {"best": cell.bold, "footnotes": list(cell.notes)}
            for cell in cells
        ]


def _mark(number: int) -> str:
    letter = chr(ord("a") + number % 26)
    return letter if number < 26 else _mark(number // 26 - 1) + letter
