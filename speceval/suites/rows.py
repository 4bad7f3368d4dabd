"""Rows of a data file or of the hub -> normalised rows, their hashes, and the check against the pinned ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from speceval.errors import UserError

from .schema import SuiteFile


class Row(NamedTuple):
    """One conversation before the template."""

    id: str
    category: str | None
    turns: list[str]
    read: dict[str, str]
    """Column name -> canonical value of the columns that were read, in the order id, category, text."""


def normalise(raw: Iterable[Mapping[str, Any]], suite: SuiteFile, shown: str) -> list[Row]:
    """All rows. Raises UserError with `shown` (the file), row (counted from 1) and field for the first bad one."""
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, record in enumerate(raw, start=1):
        row = normalise_row(record, number, suite, shown)
        if row.id in seen:
            raise UserError(f"{shown}: row {number}, field 'id': '{row.id}' is already row {seen[row.id]}")
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{shown}: empty: no rows")
    return rows


def normalise_row(record: Mapping[str, Any], number: int, suite: SuiteFile, shown: str) -> Row:
    """One row; `number` counts from 1. Raises UserError with file, row and field."""
    where = f"{shown}: row {number}"
    text_field = _present(record, suite.fields.text)
    if text_field is None:
        raise UserError(f"{where}, field '{' or '.join(suite.fields.text)}': missing")
    turns = _turns(record[text_field], f"{where}, field '{text_field}'")
    read: dict[str, str] = {}
    row_id, category = f"{number - 1:04d}", suite.category
    id_field = _present(record, suite.fields.id)
    if id_field is not None:
        row_id = read[id_field] = _identifier(record[id_field], f"{where}, field '{id_field}'")
    category_field = _present(record, suite.fields.category)
    if category_field is not None:
        category = read[category_field] = _text(record[category_field], f"{where}, field '{category_field}'")
    read[text_field] = _canonical(turns)
    return Row(row_id, category, turns, read)


def dataset_hash(rows: list[Row]) -> str:
    """sha256 in hex over the rows' id, category and turns, one canonical JSON line each."""
    lines = (_canonical({"id": row.id, "category": row.category, "turns": row.turns}) + "\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def pin(row: Row) -> str:
    """The row's line in a `.rows` file: eight hex digits for each column read, separated by blanks."""
    return " ".join(hashlib.sha256(value.encode()).hexdigest()[:8] for value in row.read.values())


def check_pins(rows: list[Row], suite: SuiteFile, directory: Path, shown: str) -> None:
    """Raise UserError naming the first row and field that differ from the pinned suite, or the wrong row count."""
    if suite.pinned is None or dataset_hash(rows) == suite.pinned.dataset_hash:
        return
    pinned = (directory / suite.pinned.rows).read_text(encoding="ascii").splitlines()
    title = f"suite {suite.name} version {suite.version}"
    mend = "use the unchanged file, or describe yours in a suite YAML of your own"
    count = f" ({len(rows)} rows instead of {len(pinned)})" if len(rows) != len(pinned) else ""
    for number, (row, wanted) in enumerate(zip(rows, pinned, strict=False), start=1):
        found = pin(row)
        if found == wanted:
            continue
        if found in pinned:
            problem = f"row {number} is row {pinned.index(found) + 1} of {title}: missing or reordered rows{count}"
        else:
            problem = f"row {number}, field '{_first_difference(row, wanted)}' differs from {title}{count}"
        raise UserError(f"{shown}: {problem}: {mend}")
    raise UserError(f"{shown}: {len(rows)} rows, {title} has {len(pinned)}: {mend}")


def _first_difference(row: Row, wanted: str) -> str:
    pairs = zip(row.read, pin(row).split(), wanted.split(), strict=False)
    return next((field for field, found, want in pairs if found != want), next(reversed(row.read)))


def _present(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def _turns(value: Any, where: str) -> list[str]:
    turns = [value] if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise UserError(f"{where}: {type(value).__name__} instead of text or a list of user turns")
    if not turns:
        raise UserError(f"{where}: an empty list instead of user turns")
    for index, turn in enumerate(turns, start=1):
        if not isinstance(turn, str):
            raise UserError(f"{where}: turn {index} is {type(turn).__name__} instead of text")
        if not turn.strip():
            raise UserError(f"{where}: turn {index} is empty")
    return turns


def _identifier(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise UserError(f"{where}: {type(value).__name__} {value!r} instead of a text or whole number")
    return str(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {type(value).__name__} instead of text")
    return value


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
