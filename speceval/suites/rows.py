"""Rows of a data file or of the hub -> normalised rows, their hashes, and the check against the pinned ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from speceval.errors import UserError

from .forms import Talk, piece, request, talk, whole
from .read import Long, Repeated
from .schema import FORMS, Fields, SuiteFile

REFUSED = (
    "tools",
    "functions",
    "tool_choice",
    "chat_template",
    "chat_template_kwargs",
    "response_format",
    "structured_outputs",
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
)
"""Columns that would change a request and cannot be given to one: without them another prompt is measured."""


MOST_NAMED = 10
"""Columns that a note names."""


class Row(NamedTuple):
    """One conversation before the template."""

    id: str
    category: str | None
    turns: list[str]
    read: dict[str, str]
    """Column name -> canonical value of the columns that were read, in the order id, category, text, system."""
    system: str | None = None
    """Its own system prompt."""
    answers: int = 0
    """Recorded answers that it holds, which nobody plays."""
    unread: tuple[str, ...] = ()
    """Columns with a value, and fields of its messages, that nothing reads."""


def normalise(
    raw: Iterable[Mapping[str, Any]], suite: SuiteFile, shown: str, left_out: list[int] | None = None
) -> list[Row]:
    """All rows but pieces of conversations (`forms.piece`), whose numbers go to `left_out`.

    Raises UserError with `shown` (the file), row (counted from 1) and field for the first bad one.
    """
    rows: list[Row] = []
    seen: dict[str, int] = {}
    left_out = [] if left_out is None else left_out
    for number, record in enumerate(raw, start=1):
        if piece(record):
            left_out.append(number)
            continue
        row = normalise_row(record, number, suite, shown)
        if row.id in seen:
            raise UserError(f"{shown}: row {number}, field 'id': '{row.id}' is already row {seen[row.id]}")
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{shown}: {'no row has a conversation that a user begins' if left_out else 'empty: no rows'}")
    return rows


def normalise_row(record: Mapping[str, Any], number: int, suite: SuiteFile, shown: str) -> Row:
    """One row; `number` counts from 1. Raises UserError with file, row and field."""
    where = f"{shown}: row {number}"
    if isinstance(record, Repeated):
        raise UserError(f"{where}, field '{record.key}': stands there twice")
    record = request(record)
    text_field = _text_field(record, suite.fields, where)
    held = talk(record, text_field, where)
    if suite.data.placeholder and any(suite.data.placeholder in turn for turn in held.turns):
        mend = suite.data.prepare or "fill it in; for SPEED-Bench prepare_data.py of NVIDIA's specdec_bench does"
        raise UserError(f"{where}, field '{text_field}': a placeholder, not a prompt: {mend}")
    read: dict[str, str] = {}
    row_id, category = f"{number - 1:04d}", suite.category
    id_field = _present(record, suite.fields.id)
    if id_field is not None:
        row_id = read[id_field] = _identifier(record[id_field], f"{where}, field '{id_field}'")
    category_field = _present(record, suite.fields.category)
    if category_field is not None and record[category_field] != "":
        category = read[category_field] = _text(record[category_field], f"{where}, field '{category_field}'")
    read[text_field] = _canonical(held.turns)
    system_field = _present(record, suite.fields.system)
    system = _system(record, system_field, held, where)
    if system is not None:
        read[system_field or "system"] = system
    unread = _unread(record, {*read, *held.used, *suite.fields.system}, where)
    return Row(row_id, category, held.turns, read, system, held.answers, (*unread, *sorted(held.unused)))


def notes(rows: list[Row], suite: SuiteFile, pieces: int = 0) -> list[str]:
    """A line for each thing that the rows of a user's file hold and that nothing uses."""
    if suite.pinned is not None:
        return []  # what a benchmark's rows hold besides is known
    lines = []
    named = dict.fromkeys(name for row in rows for name in row.unread)
    if unread := [name if name.strip() and name.isprintable() else ascii(name) for name in named]:
        more = f" and {len(unread) - MOST_NAMED} more" if len(unread) > MOST_NAMED else ""
        lines.append(f"{suite.name}: its rows hold what nothing uses: {', '.join(unread[:MOST_NAMED])}{more}")
    if answers := sum(row.answers for row in rows):
        lines.append(f"{suite.name}: {answers:,} recorded answers are not used: the target answers itself")
    if pieces:
        lines.append(f"{suite.name}: {pieces:,} rows hold no conversation that a user begins: they are left out")
    return lines


def dataset_hash(rows: list[Row]) -> str:
    """sha256 in hex over the rows' id, category, turns and system prompt if any, one canonical JSON line each."""
    total = hashlib.sha256()
    for row in rows:
        content = {"id": row.id, "category": row.category, "turns": row.turns}
        content |= {} if row.system is None else {"system": row.system}
        total.update(f"{_canonical(content)}\n".encode())
    return total.hexdigest()


def pin(row: Row) -> str:
    """The row's line in a `.rows` file: eight hex digits for each column read, separated by blanks."""
    return " ".join(hashlib.sha256(value.encode()).hexdigest()[:8] for value in row.read.values())


def read_pins(path: Path) -> list[str]:
    """The lines of a `.rows` file (`pin`). Raises UserError for a file that is none."""
    try:
        return path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a file of pinned rows: no ASCII text") from None


def check_pins(rows: list[Row], suite: SuiteFile, directory: Path, shown: str) -> None:
    """Raise UserError naming the first row and field that differ from the pinned suite, or the wrong row count."""
    if suite.pinned is None or dataset_hash(rows) == suite.pinned.dataset_hash:
        return
    pinned = read_pins(directory / suite.pinned.rows)
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


def _text_field(record: Mapping[str, Any], fields: Fields, where: str) -> str:
    """The column that holds the conversation. Of several that the suite names the first; unnamed, there may be one."""
    present = [name for name in fields.text if record.get(name) is not None]
    if not present:
        plain = [name for name in fields.text if name not in FORMS] or fields.text
        others = ", ".join(name for name in fields.text if name not in plain)
        columns = [name for name in record if name.isprintable()][:MOST_NAMED]
        hint = f"; it has {', '.join(columns)}: a suite's YAML names another (fields: {{text: …}})" if columns else ""
        raise UserError(
            f"{where}, field '{' or '.join(plain)}': missing{f' (nor is there {others})' if others else ''}{hint}"
        )
    if len(present) > 1 and "text" not in fields.model_fields_set:
        raise UserError(
            f"{where}, fields '{present[0]}' and '{present[1]}': both hold a conversation: remove one, or name the one "
            f"that is meant in a suite's YAML (fields: {{text: {present[0]}}})"
        )
    return present[0]


def _system(record: Mapping[str, Any], field: str | None, held: Talk, where: str) -> str | None:
    if field is None:
        return held.system
    value = _text(record[field], f"{where}, field '{field}'")
    if value and held.system is not None:
        raise UserError(f"{where}, field '{field}': the messages have a system prompt too: remove one")
    return value or held.system


def _unread(record: Mapping[str, Any], used: set[str], where: str) -> list[str]:
    """Columns with a value that nothing uses. Raises UserError for one without which the prompt is another."""
    unread = [name for name, value in record.items() if name not in used and value not in (None, "", [], {}, "[]")]
    if refused := [name for name in unread if name in REFUSED]:
        raise UserError(
            f"{where}, field '{refused[0]}': cannot be given to a request, which would be another without it"
        )
    return unread


def _identifier(value: Any, where: str) -> str:
    if isinstance(value, Long):
        return value.digits
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise UserError(f"{where}: {type(value).__name__} {value!r} instead of a text or whole number")
    return whole(str(value), where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {type(value).__name__} instead of text")
    return whole(value, where)


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
