"""What `speceval ls` prints is all there, however long one cell is."""

from __future__ import annotations

import io

from rich.console import Console

from speceval import catalog
from speceval.show import listings


def printed(table: object, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_long_cell_takes_no_room_from_the_names_beside_it() -> None:
    """One target has twenty drafters: their column wraps, no other is cut."""
    lines = printed(listings.table(catalog.listing("targets")), 160)
    for row in catalog.listing("targets"):
        assert row["target"] in lines and row["model"] in lines


def test_a_list_wraps_between_its_items_and_nothing_is_lost() -> None:
    rows = [{"name": "q" * 20, "list": ", ".join(["xxxxxxxxx"] * 10), "last": "y" * 30}]
    lines = printed(listings.table(rows), 50)
    assert rows[0]["name"] in lines and "xxxxxxxxx," in lines
    assert [lines.count(letter) for letter in "xy"] == [90, 30]
