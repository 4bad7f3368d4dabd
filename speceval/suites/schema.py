"""What a suite's YAML holds (`SuiteFile`) and what `load` returns (`Suite`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speceval.errors import UserError
from speceval.foreign import read_yaml


@dataclass(frozen=True)
class Conversation:
    """User turns to be played against the live model: its answers come between them."""

    id: str
    category: str | None
    turns: list[str]


@dataclass(frozen=True)
class Suite:
    """A loaded suite.

    `dataset_hash` is the sha256 over all rows (id, category, user text) before template, shuffle and limit: equal for
    hub and local files of the same content. `max_tokens` is the suite's default per turn.
    """

    name: str
    version: int
    dataset_hash: str
    conversations: list[Conversation]
    max_tokens: int
    system: str | None
    template: str
    source: str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hub(_Strict):
    """Where the dataset hub has the rows."""

    id: str
    config: str | None = None
    split: str
    revision: str | None = None


class Data(_Strict):
    """Where the rows are: beside the YAML or in the data directory under one of the names `file`, else on the hub."""

    file: tuple[str, ...] = Field(min_length=1)
    hub: Hub | None = None


class Fields(_Strict):
    """Column names; of several the first that a row has counts (hub and local files name them differently)."""

    text: tuple[str, ...] = ("turns", "prompt")
    """A list of user turns, or one user turn as text."""
    id: tuple[str, ...] = ("id",)
    """Without such a column the row's number, counted from 0, is its id."""
    category: tuple[str, ...] = ("category",)


class Pinned(_Strict):
    """What the rows must be. The row hashes are in the file `rows` beside the YAML."""

    rows: str
    dataset_hash: str


class SuiteFile(_Strict):
    """One suite's YAML."""

    name: str
    version: int = Field(ge=1)
    """Raised whenever prompts, template, system or max_tokens change: results of different versions do not compare."""
    data: Data
    fields: Fields = Fields()
    category: str | None = None
    """Category of rows that name none."""
    template: str = "{prompt}"
    """Each turn's text is put where `{prompt}` stands; other braces are plain text."""
    system: str | None = None
    max_tokens: int = Field(default=1024, ge=1)
    pinned: Pinned | None = None
    prompt_note: str | None = None


def read_suite_file(path: Path) -> SuiteFile:
    """The suite in a YAML file. Raises UserError naming file and field."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a suite: the YAML must hold fields such as name, version and data")
    try:
        suite = SuiteFile.model_validate(_with_file_list(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: field '{where}': {first['msg']}") from None
    if "{prompt}" not in suite.template:
        raise UserError(f"{path}: field 'template': holds no {{prompt}}, so the prompts would be lost")
    return suite


def _with_file_list(content: dict[str, object]) -> dict[str, object]:
    """Let `data.file` and the column names be one name instead of a list."""
    content = dict(content)
    for section in ("data", "fields"):
        part = content.get(section)
        if isinstance(part, dict):
            content[section] = {key: [value] if isinstance(value, str) else value for key, value in part.items()}
    return content
