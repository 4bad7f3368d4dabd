"""Runs read back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speceval import folders
from speceval.errors import UserError
from speceval.foreign import read_json
from speceval.private import without_places
from speceval.protocol import RunSpec
from speceval.store.older import migrate_turns
from speceval.store.schema import RunMeta, parse

if TYPE_CHECKING:
    import pandas as pd
from speceval.store.layout import (
    JOURNAL,
    OUTPUTS,
    REQUEST,
    RUN,
    STEP_COLUMNS,
    STEPS,
    THOUGHT,
    TIME_COLUMNS,
    TURN_COLUMNS,
    TURNS,
    is_recorded,
)
from speceval.store.tables import OutputLine, frames, read_lines

RANGES = {"int32": (-(1 << 31), (1 << 31) - 1), "int64": (-(1 << 53), 1 << 53)}
"""Whole numbers of the columns' types; the larger ones are still exact in floating point."""

COLUMN_BY_COLUMN = {"split_blocks": True, "self_destruct": True}
"""Of a table, each column is given up as soon as it is read: else it is in memory twice."""


@dataclass(eq=False)
class StoredRun:
    """A run read back. `turns` and `steps` as the estimators take them (see `speceval.estimate.acceptance`)."""

    directory: Path
    meta: RunMeta
    turns: pd.DataFrame
    steps: pd.DataFrame

    def published(self) -> StoredRun:
        """The same for readers elsewhere (`RunMeta.published`); its directory is a name, no place to read from."""
        return replace(self, directory=Path(without_places(str(self.directory))), meta=self.meta.published())

    @property
    def complete(self) -> bool:
        """Whether every conversation of the run is in."""
        return self.meta.status != "running"

    @property
    def suites(self) -> list[str]:
        """Names of the suites, in the order in which they were asked for."""
        return list(self.meta.fingerprint.suites)

    @property
    def conversations(self) -> int:
        """Conversations that are in, each seed counted."""
        return len(self.turns[REQUEST[:3]].drop_duplicates())

    def suite(self, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The steps and the turns of one suite."""
        if self.suites == [name]:
            return self.steps, self.turns
        return self.steps[self.steps["suite"] == name], self.turns[self.turns["suite"] == name]

    @property
    def checked(self) -> tuple[int, int]:
        """Conversations that were held against the engine's counters, and those that were measured."""
        told = sum(segment.conversations for segment in self.meta.segments)
        return self.meta.checked_conversations, max(told, self.conversations)


def read_meta(directory: Path) -> RunMeta:
    """run.json of a run's directory. Raises `UserError` when there is none or it is not ours."""
    path = directory / RUN
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{directory}: no run here ({RUN} is missing): `speceval ls runs` lists them") from None
    return parse(content, path)


def read_run(directory: Path) -> StoredRun:
    """Read a run, finished or not. Raises `UserError` when the directory holds none or its tables are not tables.

    Whether what they say is consistent is another question: `speceval.estimate.books`.
    """
    meta = read_meta(directory)
    turns, steps = _read_journal(directory) if meta.status == "running" else _read_tables(directory)
    return StoredRun(directory, meta, turns, steps)


def _read_journal(directory: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of an unfinished run."""
    return frames(read_lines(directory / JOURNAL, ignore_torn=True))


def _read_tables(directory: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of a finished run, with all columns that a run has, and these of the right kind."""
    import pandas as pd

    tables = []
    for name in (TURNS, STEPS):
        try:
            tables.append(pd.read_parquet(directory / name, **_options()))
        except Exception as error:  # whatever the library makes of bytes that are no table
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{directory / name}: cannot be read ({reason}): run it again") from None
    turns, steps = migrate_turns(tables[0]), tables[1]
    for name, table, columns in ((TURNS, turns, TURN_COLUMNS), (STEPS, steps, STEP_COLUMNS)):
        if fault := _fault(table, columns):
            raise UserError(f"{directory / name}: {fault}: the file is damaged, run it again")
    return _as_written(turns, TURN_COLUMNS), _as_written(steps, STEP_COLUMNS)


def _options() -> dict[str, Any]:
    """How a table is read: as `COLUMN_BY_COLUMN` says, by versions of pandas that can be told."""
    import pandas as pd

    known = inspect.signature(pd.read_parquet).parameters
    return {"engine": "pyarrow"} | ({"to_pandas_kwargs": COLUMN_BY_COLUMN} if "to_pandas_kwargs" in known else {})


def _as_written(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table with the types that a run is written with: sums of narrow or unsigned numbers would overflow."""
    other = {name: kind for name, kind in columns.items() if table[name].dtype != kind}
    return (table.astype(other) if other else table).reset_index(drop=True)


def _fault(table: pd.DataFrame, columns: Mapping[str, str]) -> str | None:
    """What is wrong with a table that should have these columns, of these types; widths of integers do not matter."""
    from pandas.api.types import is_float_dtype, is_integer_dtype, is_string_dtype

    if not table.columns.is_unique:
        return "has a column twice"
    if absent := [name for name in columns if name not in table]:
        return f"lacks the column(s) {', '.join(absent)}"
    for name, kind in columns.items():
        column = table[name]
        if name == "category" and column.isna().all():
            continue
        if name != "category" and column.isna().any():
            return f"has empty values in {name}"
        known = column.dropna() if column.dtype == object else column
        if not (is_string_dtype(known) if kind == "string" else is_integer_dtype(known)):
            return f"{name} holds {column.dtype}, not {'text' if kind == 'string' else 'whole numbers'}"
        if kind in RANGES and len(column) and not RANGES[kind][0] <= column.min() <= column.max() <= RANGES[kind][1]:
            return f"{name} holds a number that no run has ({column.min()} to {column.max()})"
    floats = [name for name in table if is_recorded(str(name)) or name in TIME_COLUMNS]
    wrong = [name for name in floats if not is_float_dtype(table[name])]
    return f"{wrong[0]} holds {table[wrong[0]].dtype}, not floating-point numbers" if wrong else None


def run_directory(root: Path, spec: RunSpec) -> Path:
    """Where a run of this spec is below `root`, under whichever version's name, else where it is to be."""
    names = (spec.name, *spec.older_names)
    return next((root / name for name in names if (root / name / RUN).exists()), root / spec.name)


def list_runs(root: Path) -> list[tuple[Path, RunMeta]]:
    """The runs below `root`, newest first."""
    return sorted(runs_below(root)[0], key=lambda run: run[1].created, reverse=True)


def runs_below(root: Path) -> tuple[list[tuple[Path, RunMeta]], dict[Path, str]]:
    """The runs below `root`, and the folders that cannot be read, with the reason.

    Raises `UserError` when there is too much below it to look through.
    """
    found = []
    holding, unreadable = folders.holding(root, RUN)
    for directory in holding:
        try:
            found.append((directory, read_meta(directory)))
        except UserError as error:
            unreadable[directory] = str(error).removeprefix(str(directory / RUN)).lstrip(":/ ")
    return found, unreadable


def directories(path: Path) -> list[Path]:
    """The directories of runs that a path stands for: itself, or all below it; also those that cannot be read.

    Raises `UserError` when there is too much below it to look through.
    """
    if (path / RUN).is_file():
        return [path]
    holding, unreadable = folders.holding(path, RUN)
    return sorted([*holding, *unreadable])


def thoughts(directory: Path) -> dict[tuple[str, str, int, int], int]:
    """Tokens of the thought of each request of a run that has one, from outputs.jsonl; runs from before have none."""
    return {
        tuple(row[column] for column in REQUEST): row[THOUGHT]
        for row in read_lines(directory / OUTPUTS, kind=OutputLine)
        if THOUGHT in row
    }
