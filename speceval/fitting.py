"""Tables that can be read on any terminal: as they are where they fit, else in pieces that do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

WRAPPED = 24
"""Columns that a cell of words must have to be read, where it has so many."""


class Fitting:
    """A table that is printed with narrow headings, or in pieces, on a terminal that is narrower than it.

    by "rows": a block for each row, its first `heads` cells in a line of their own, the others below, each with its
    heading; "lines": the same with the others behind each other; "columns": several tables, each with the first column
    and as many of the others as fit.
    """

    def __init__(self, table: Table, by: Literal["rows", "lines", "columns"] = "rows", heads: int = 1) -> None:
        self.table, self.by, self.heads = table, by, heads

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for table in (self.table, self._of(self.table.columns, narrow=True)):
            if needed(table, console, options) <= options.max_width or not table.rows:
                yield table
                return
        yield from self._some_columns(console, options) if self.by == "columns" else self._blocks()

    def _blocks(self) -> Iterator[RenderableType]:
        if self.table.title is not None:
            yield _text(self.table.title)
        labels = [_text(column.header) for column in self.table.columns[self.heads :]]
        for row in zip(*(column.cells for column in self.table.columns), strict=True):
            heads = [_text(cell) for cell in row[: self.heads]]
            yield Text(" ", style="bold").join(head for head in heads if head.plain.strip())
            told = [
                (label, _text(cell))
                for label, cell in zip(labels, row[self.heads :], strict=True)
                if _text(cell).plain.strip()
            ]
            if self.by == "lines":
                line = Text(" · ").join(label + Text(" ") + Text(cell.plain.strip()) for label, cell in told)
                yield Padding(line, (0, 0, 0, 2))
                continue
            block = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
            for label, cell in told:
                block.add_row(Text("  ") + label, cell)
            yield block

    def _some_columns(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        first, *others = self.table.columns
        while others:
            count = next(
                (
                    number
                    for number in range(len(others), 1, -1)
                    if needed(self._of([first, *others[:number]]), console, options) <= options.max_width
                ),
                1,
            )
            yield self._of([first, *others[:count]])
            others = others[count:]

    def _of(self, columns: list[Column], narrow: bool = False) -> Table:
        """The same table with these columns alone. `narrow`: a line for each word of a heading."""
        whole = self.table
        part = Table(box=whole.box, title=whole.title, title_justify=whole.title_justify, pad_edge=whole.pad_edge)
        for column in columns:
            heading = Text(_text(column.header).plain.replace(" ", "\n")) if narrow else column.header
            part.add_column(heading, justify=column.justify, no_wrap=column.no_wrap)
        for row, cells in zip(self.table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
            part.add_row(*cells, end_section=row.end_section)
        return part


def needed(table: Table, console: Console, options: ConsoleOptions) -> int:
    """Width from which on a table can be read: no cell that must not wrap is cut, words have `WRAPPED` columns."""
    wide = options.update(max_width=100_000)
    before = [column.min_width for column in table.columns]
    for column in table.columns:
        natural = max(Measurement.get(console, wide, cell).maximum for cell in (column.header, *column.cells))
        column.min_width = natural if column.no_wrap else min(natural, WRAPPED)
    try:
        return Measurement.get(console, wide, table).minimum
    finally:
        for column, width in zip(table.columns, before, strict=True):
            column.min_width = width


def _text(cell: RenderableType) -> Text:
    return cell.copy() if isinstance(cell, Text) else Text(str(cell))
