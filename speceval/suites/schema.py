"""What a suite's YAML holds (`SuiteFile`) and what `load` returns (`Suite`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from speceval.errors import UserError
from speceval.files import Strict, first_error
from speceval.foreign import read_yaml

FORMS = ("messages", "conversations", "conversation", "instruction")
"""Columns by which other programs' files are known: OpenAI's, ShareGPT's and Alpaca's."""


@dataclass(frozen=True)
class Conversation:
    """User turns to be played against the live model: its answers come between them."""

    id: str
    category: str | None
    turns: list[str]
    system: str | None = None
    """The row's own system prompt, which goes before the suite's."""


@dataclass(frozen=True)
class Suite:
    """A loaded suite.

    `dataset_hash` is the sha256 over all rows (id, category, user text, own system prompt) before template, shuffle and
    limit: equal for hub and local files of the same content. `max_tokens` is the suite's default per turn. `notes`:
    what the rows hold and nothing uses, a line each.
    """

    name: str
    version: int
    dataset_hash: str
    conversations: list[Conversation]
    max_tokens: int
    system: str | None
    template: str
    source: str
    notes: tuple[str, ...] = ()
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Name of a group -> its categories, which are reported together too."""

    def opening(self, conversation: Conversation) -> list[dict[str, str]]:
        """The messages before its first turn: a system prompt or none."""
        system = conversation.system if conversation.system is not None else self.system or None
        return [] if system is None else [{"role": "system", "content": system}]


class Hub(Strict):
    """Where the dataset hub has the rows."""

    id: str
    config: str | None = None
    split: str
    revision: str | None = None


Maker = Literal["longcontext"]
"""A module of this package that makes rows."""


SPEED_BENCH = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"
"""In turns of nvidia/SPEED-Bench as it is published (specdec_bench/datasets/speed.py of NVIDIA's Model-Optimizer)."""


class Data(Strict):
    """Where the rows are: beside the YAML or in the data directory under one of the names `file`, else on the hub."""

    file: tuple[str, ...] = Field(min_length=1)
    hub: Hub | None = None
    made: Maker | None = None
    """What makes the rows where there is no file."""
    placeholder: str | None = SPEED_BENCH
    """Text of rows that are yet to be filled in: they are refused."""
    prepare: str | None = None
    """How to get the file, for who has none, or one with placeholders."""


class Fields(Strict):
    """Column names; of several the first that a row has counts (hub and local files name them differently)."""

    text: tuple[str, ...] = Field(default=("turns", "prompt", *FORMS), min_length=1)
    """User turns, one or a list of them; chat messages of OpenAI's or ShareGPT's form; Alpaca's instruction."""
    id: tuple[str, ...] = ("id", "question_id")
    """Without such a column the row's number, counted from 0, is its id."""
    category: tuple[str, ...] = ("category",)
    system: tuple[str, ...] = ("system", "system_prompt")
    """The row's own system prompt. Empty is none."""


class Pinned(Strict):
    """What the rows must be. The row hashes are in the file `rows` beside the YAML."""

    rows: str
    dataset_hash: str
    turns: int = Field(default=1, ge=1, strict=True)
    """Of a conversation, to plan with where the rows are not at hand."""


class SuiteFile(Strict):
    """One suite's YAML."""

    name: str
    version: int = Field(ge=1, strict=True)
    """Raised whenever prompts, template, system or max_tokens change: results of different versions do not compare."""
    data: Data
    fields: Fields = Fields()
    category: str | None = None
    """Category of rows that name none."""
    groups: dict[str, list[str]] = Field(default_factory=dict)
    """Name of a group -> its categories, where several are reported as one."""
    template: str = "{prompt}"
    """Each turn's text is put where `{prompt}` stands; other braces are plain text."""
    system: str | None = None
    """System prompt of rows that have none."""
    max_tokens: int = Field(default=1024, ge=1, strict=True)
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
        raise UserError(f"{path}: {first_error(error)}") from None
    if not suite.name.strip():
        raise UserError(f"{path}: field 'name': empty")
    grouped = [category for categories in suite.groups.values() for category in categories]
    if twice := sorted({category for category in grouped if grouped.count(category) > 1}):
        raise UserError(f"{path}: field 'groups': category '{twice[0]}' stands there twice")
    if "{prompt}" not in suite.template:
        raise UserError(f"{path}: field 'template': holds no {{prompt}}, so the prompts would be lost")
    return suite


def _with_file_list(content: dict[str, object]) -> dict[str, object]:
    """Let `data` be the file alone, and `data.file` and the column names one name instead of a list."""
    content = dict(content)
    if isinstance(content.get("data"), str):
        content["data"] = {"file": content["data"]}
    for section in ("data", "fields"):
        part = content.get(section)
        if isinstance(part, dict):
            content[section] = {
                key: [value] if isinstance(value, str) and (section == "fields" or key == "file") else value
                for key, value in part.items()
            }
    return content
