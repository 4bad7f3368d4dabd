"""The store of one run: `run.json`, `turns.parquet`, `steps.parquet`, `outputs.jsonl`.

While a run goes on, each finished conversation is one line of `journal.jsonl`, written before the next is taken. So a
killed run loses the conversations in flight and nothing more: the next start drops a torn last line and goes on. When
all are in, the tables are made from the journal, each under a temporary name and then renamed, and the journal goes
last.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
import time
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, KeysView, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from speceval.errors import UserError
from speceval.locks import open_locked
from speceval.protocol import RunSpec
from speceval.schema import RunMeta, Skipped, parse

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

RUN, JOURNAL, TURNS, STEPS, OUTPUTS = (
    "run.json",
    "journal.jsonl",
    "turns.parquet",
    "steps.parquet",
    "outputs.jsonl",
)

SYNC_SECONDS = 1.0
"""Time between two flushes of the journal to the disk itself."""

Key = tuple[str, str, int]
"""A conversation of a run: suite, conversation id, seed."""

Counts = tuple[int, int]
"""Accepted draft tokens, and steps that had drafts."""

TURN_COLUMNS = {
    "suite": "string", "conversation": "string", "seed": "int64", "turn": "int64", "category": "string",
    "prompt_tokens": "int64", "cached_tokens": "int64", "output_tokens": "int64", "finish_reason": "string",
    "steps": "int64", "undrafted_steps": "int64", "padded_steps": "int64",
    "drafted": "int64", "accepted": "int64", "excess": "int64",
}  # fmt: skip
STEP_COLUMNS = {
    "suite": "string", "conversation": "string", "seed": "int64", "turn": "int64", "step": "int64",
    "drafted": "int32", "accepted": "int32", "committed": "int32",
}  # fmt: skip
"""Beside these, in runs that record the verifier: `recorded_columns`."""


RECORDED_COLUMNS = {"recorded": ("ratio", "alpha"), "kept": ("kept",)}
"""What the verifier saw, by the name under which a turn's line in the journal holds it (see `pack`)."""
RECORDED = RECORDED_COLUMNS.keys()


def recorded_columns(k: int, names: tuple[str, ...] = RECORDED_COLUMNS["recorded"]) -> list[str]:
    """Columns of `steps` for what the verifier saw at draft positions j = 1 … k, float32.

    ratio_j = min(1, p_j(d_j)/q_j(d_j)), alpha_j = sum_x min(p_j, q_j), in a replayed text kept_j = min(1, q_j(x_j)/
    p_j(x_j)); NaN where nothing was drafted or recorded.
    """
    return [f"{name}_{j}" for name in names for j in range(1, k + 1)]


def is_recorded(column: str) -> bool:
    """Whether a column of `steps` is one of `recorded_columns`."""
    return any(column.rpartition("_")[0] in names for names in RECORDED_COLUMNS.values())


@dataclass
class StoredRun:
    """A run read back. `turns` and `steps` as the estimators take them (see `speceval.acceptance`)."""

    directory: Path
    meta: RunMeta
    turns: pd.DataFrame
    steps: pd.DataFrame

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
        return len(self.turns[["suite", "conversation", "seed"]].drop_duplicates())

    @property
    def checked(self) -> tuple[int, int]:
        """Conversations that were held against the engine's counters, and those that were measured."""
        told = sum(segment.conversations for segment in self.meta.segments)
        return self.meta.checked_conversations, max(told, self.conversations)


class Store:
    """A run's directory, open for writing. Use as a context manager: it holds a lock against a second writer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._journal: IO[bytes] | None = None
        self._synced = 0.0
        self.counts: dict[Key, list[Counts]] = {}
        """What each turn of each conversation accepted, in the order in which the conversations came in."""
        self._tables: Tables | None = None
        """Of the journal as it is now, once they have been asked for."""

    @property
    def done(self) -> KeysView[Key]:
        """The conversations that are in."""
        return self.counts.keys()

    def __enter__(self) -> Store:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"--out {self.directory}: not a directory: name one, or a new one") from None
        try:
            self._journal = open_locked(self.directory / JOURNAL, "ab+", wait=False)
        except BlockingIOError:
            raise UserError(f"{self.directory}: another speceval is writing this run: wait for it") from None
        self.counts = {_key(line): _counts(line) for line in read_lines(self.directory / JOURNAL, ignore_torn=True)}
        _drop_torn_line(self._journal)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._journal is not None
        self._journal.close()
        if not self.done and not (self.directory / RUN).exists():  # nothing was measured: leave nothing behind
            (self.directory / JOURNAL).unlink()
            if not any(self.directory.iterdir()):
                self.directory.rmdir()

    def read_meta(self) -> RunMeta | None:
        """run.json, or None for a run that has none yet."""
        return read_meta(self.directory) if (self.directory / RUN).exists() else None

    def write_meta(self, meta: RunMeta) -> None:
        """Replace run.json, which tells no more than the journal holds."""
        assert self._journal is not None
        os.fdatasync(self._journal.fileno())
        write_meta(self.directory, meta)

    def append(self, conversation: dict[str, Any]) -> None:
        """Store one finished conversation: safe from kill -9 on return, from a power cut about a second later."""
        assert self._journal is not None
        key = _key(conversation)
        if key in self.counts:
            raise ValueError(f"conversation {key} is in the store already")
        self._journal.write(json.dumps(conversation, ensure_ascii=False).encode() + b"\n")
        self._journal.flush()  # survives a kill of this process from here on
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fdatasync(self._journal.fileno())
            self._synced = time.monotonic()
        self.counts[key], self._tables = _counts(conversation), None

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The turns and steps so far."""
        whole = self._whole()
        return whole.turns, whole.steps

    def finish(self, meta: RunMeta, counted: Collection[Key] | None = None) -> None:
        """Turn the journal into the tables, of the `counted` conversations (None: of all), and mark the run as over."""
        whole = self._whole()
        kept = whole.places.keys() if counted is None else whole.places.keys() & counted
        turns, steps = whole.of(None if counted is None else kept)
        with _replacing(self.directory / OUTPUTS) as temporary, temporary.open("wb") as file:
            for key in sorted(kept):
                file.write(whole.outputs_of(key))
        for name, frame in ((TURNS, turns), (STEPS, steps)):
            with _replacing(self.directory / name) as temporary:
                frame.to_parquet(temporary, index=False)
        skipped = [line for line in whole.skipped if (line.suite, line.conversation, line.seed) in kept]
        self.write_meta(meta.model_copy(update={"skipped": skipped}))
        (self.directory / JOURNAL).unlink()

    def _whole(self) -> Tables:
        """Everything that the journal tells, parsed once for as long as nothing is appended."""
        if self._tables is None:
            self._tables = Tables.of_journal(self.directory / JOURNAL)
        return self._tables


@dataclass
class Tables:
    """A journal as tables. The texts, which may not fit into memory, wait in a file without a name."""

    turns: pd.DataFrame
    steps: pd.DataFrame
    skipped: list[Skipped]
    places: dict[Key, tuple[int, int]]
    """Where each conversation's lines of outputs.jsonl begin and end in `texts`."""
    texts: IO[bytes]

    @classmethod
    def of_journal(cls, path: Path) -> Tables:
        """In one pass over the file."""
        skipped: list[Skipped] = []
        places: dict[Key, tuple[int, int]] = {}
        texts = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 (open as long as the tables are)

        def lines() -> Iterator[dict[str, Any]]:
            for line in read_lines(path):
                begin = texts.tell()
                texts.write("".join(_outputs(line)).encode())
                places[_key(line)] = begin, texts.tell()
                if "skipped" in line:
                    skipped.append(Skipped(**{name: line[name] for name in Skipped.model_fields}))
                yield line

        turns, steps = frames(lines())
        return cls(turns, steps, skipped, places, texts)

    def of(self, conversations: Collection[Key] | None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Turns and steps of some conversations (None: of all)."""
        if conversations is None:
            return self.turns, self.steps
        import numpy as np

        keys = zip(self.turns["suite"], self.turns["conversation"], self.turns["seed"], strict=True)
        kept = np.fromiter((key in conversations for key in keys), bool, len(self.turns))
        of_steps = np.repeat(kept, self.turns["steps"] + self.turns["undrafted_steps"])
        return self.turns[kept].reset_index(drop=True), self.steps[of_steps].reset_index(drop=True)

    def outputs_of(self, key: Key) -> bytes:
        """A conversation's lines of outputs.jsonl."""
        begin, end = self.places[key]
        self.texts.seek(begin)
        return self.texts.read(end - begin)


def _outputs(line: dict[str, Any]) -> Iterator[str]:
    """The lines of outputs.jsonl of one line of the journal: a turn each, without its counts."""
    conversation = {name: line[name] for name in ("suite", "conversation", "seed", "category")}
    for turn in line["turns"]:
        kept = {name: value for name, value in turn.items() if name not in ("steps", *RECORDED)}
        yield json.dumps(conversation | kept, ensure_ascii=False) + "\n"


def write_meta(directory: Path, meta: RunMeta) -> None:
    """Replace a run's run.json."""
    with _replacing(directory / RUN) as temporary:
        temporary.write_text(json.dumps(meta.as_json(), indent=2, ensure_ascii=False) + "\n")


def read_meta(directory: Path) -> RunMeta:
    """run.json of a run's directory. Raises `UserError` when there is none or it is not ours."""
    path = directory / RUN
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory}: no run here ({RUN} is missing): `speceval ls runs` lists them") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON at line {error.lineno}: the file is damaged") from None
    except (UnicodeDecodeError, RecursionError):
        raise UserError(f"{path}: not JSON: the file is damaged") from None
    return parse(content, path)


def migrate_turns(turns: pd.DataFrame) -> pd.DataFrame:
    """The turn table of an older schema with the columns of this one."""
    return turns if "padded_steps" in turns else turns.assign(padded_steps=0)


def read_run(directory: Path) -> StoredRun:
    """Read a run, finished or not. Raises `UserError` when the directory holds none or its tables are not tables.

    Whether what they say is consistent is another question: `speceval.books`.
    """
    meta = read_meta(directory)
    turns, steps = _read_journal(directory) if meta.status == "running" else _read_tables(directory)
    return StoredRun(directory, meta, turns, steps)


def _read_journal(directory: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of an unfinished run."""
    try:
        return frames(read_lines(directory / JOURNAL, ignore_torn=True))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{directory / JOURNAL}: fields are missing or of another kind: the file is damaged") from None


def _read_tables(directory: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of a finished run, with all columns that a run has, and these of the right kind."""
    import pandas as pd
    import pyarrow as pa

    tables = []
    for name in (TURNS, STEPS):
        try:
            tables.append(pd.read_parquet(directory / name))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{directory / name}: cannot be read ({reason}): run it again") from None
    turns, steps = migrate_turns(tables[0]), tables[1]
    for name, table, columns in ((TURNS, turns, TURN_COLUMNS), (STEPS, steps, STEP_COLUMNS)):
        if fault := _fault(table, columns):
            raise UserError(f"{directory / name}: {fault}: the file is damaged, run it again")
    return turns, steps


def _fault(table: pd.DataFrame, columns: Mapping[str, str]) -> str | None:
    """What is wrong with a table that should have these columns, of these types; widths of integers do not matter."""
    from pandas.api.types import is_float_dtype, is_integer_dtype, is_string_dtype

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
    wrong = [name for name in table if is_recorded(str(name)) and not is_float_dtype(table[name])]
    return f"{wrong[0]} holds {table[wrong[0]].dtype}, not floating-point numbers" if wrong else None


def frames(conversations: Iterable[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Journal lines as the data frames `turns` (a row per request) and `steps` (a row per step), sorted."""
    import numpy as np
    import pandas as pd

    requests: list[tuple[Any, ...]] = []
    numbers = array("i")  # drafted, accepted and committed of every step
    recorded: dict[str, list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)
    for line in conversations:
        key = _key(line)
        for turn in line["turns"]:
            rows = turn["steps"]
            for kind in RECORDED & turn.keys():
                drafted = sum(step[0] > 0 for step in rows)
                recorded[kind].append((len(requests), unpack(turn[kind], drafted, len(RECORDED_COLUMNS[kind]))))
            if any(len(step) != 3 for step in rows):
                raise ValueError(f"{key}: a step has three numbers")
            numbers.extend(chain.from_iterable(rows))
            requests.append(
                (*key, turn["turn"], line["category"], turn["prompt_tokens"], turn["cached_tokens"],
                 len(turn["token_ids"]), turn["finish_reason"], turn.get("padded_steps", 0), len(rows))
            )  # fmt: skip
    turns = pd.DataFrame(requests, columns=[*(name for name in TURN_COLUMNS if name not in SUMS), "rows"])
    count = turns.pop("rows").to_numpy(np.int64)
    counts = np.array(numbers, np.int32).reshape(-1, 3)
    turns = turns.assign(**_sums(counts.astype(np.int64), np.repeat(np.arange(len(turns)), count), len(turns)))
    turns = turns[list(TURN_COLUMNS)].astype(TURN_COLUMNS).sort_values(["suite", "conversation", "seed", "turn"])
    order = turns.index.to_numpy()
    rows_of = _ranges(np.cumsum(count)[order] - count[order], count[order])
    steps = turns[["suite", "conversation", "seed", "turn"]].loc[np.repeat(order, count[order])]
    numbered = {"step": _ranges(np.ones(len(order), np.int64), count[order])}
    numbered |= dict(zip(("drafted", "accepted", "committed"), counts[rows_of].T, strict=True))
    steps = steps.reset_index(drop=True).assign(**numbered).astype(STEP_COLUMNS)
    for kind, values in recorded.items():
        table = _recorded_table(values, counts[:, 0], count)
        names = recorded_columns(table.shape[1] // len(RECORDED_COLUMNS[kind]), RECORDED_COLUMNS[kind])
        steps = steps.join(pd.DataFrame(table[rows_of], columns=names))
    return turns.reset_index(drop=True), steps


SUMS = ("steps", "undrafted_steps", "drafted", "accepted", "excess")
"""Columns of `turns` that are sums over `steps`."""


def _sums(counts: NDArray[np.int64], owner: NDArray[np.intp], turns: int) -> dict[str, NDArray[np.int64]]:
    """`SUMS` of each turn, from drafted, accepted and committed [steps, 3] and the turn of each step."""
    import numpy as np

    def total(values: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(owner, values, minlength=turns).astype(np.int64)

    drafted, accepted, committed = counts.T
    verified = drafted > 0
    columns = (verified, ~verified, drafted, accepted * verified, 1 + accepted - committed)
    return {name: total(values) for name, values in zip(SUMS, columns, strict=True)}


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1 … of `counts` numbers each, one range after another."""
    import numpy as np

    return np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)


def pack(recorded: NDArray[np.float32]) -> str:
    """A turn's record [steps with drafts, kinds, K] as text for the journal (base64 of little-endian float32)."""
    return base64.b64encode(recorded.astype("<f4").tobytes()).decode()


def unpack(text: str, steps: int, kinds: int) -> NDArray[np.float32]:
    """The array of `pack`, for a turn with this many steps that have drafts."""
    import numpy as np

    return np.frombuffer(base64.b64decode(text), "<f4").reshape(steps, kinds, -1)


def _recorded_table(
    recorded: list[tuple[int, NDArray[np.float32]]], drafted: NDArray[np.int32], count: NDArray[np.int64]
) -> NDArray[np.float32]:
    """What was recorded, [steps, kinds * K], from (turn, values [its steps with drafts, kinds, K]) of turns that were.

    `drafted`: of each step; `count`: steps of each turn.
    """
    import numpy as np

    was = np.zeros(len(count), bool)
    was[[turn for turn, _ in recorded]] = True
    values = np.concatenate([values for _, values in recorded])
    table = np.full((len(drafted), *values.shape[1:]), np.nan, np.float32)
    table[np.repeat(was, count) & (drafted > 0)] = values
    return table.reshape(len(drafted), -1)


def run_directory(root: Path, spec: RunSpec) -> Path:
    """Where a run of this spec is below `root`, under whichever version's name, else where it is to be."""
    names = (spec.name, *spec.older_names)
    return next((root / name for name in names if (root / name / RUN).exists()), root / spec.name)


def list_runs(root: Path) -> list[tuple[Path, RunMeta]]:
    """The runs below `root`, newest first."""
    found = [(path.parent, read_meta(path.parent)) for path in root.glob(f"**/{RUN}")]
    return sorted(found, key=lambda run: run[1].created, reverse=True)


def _key(line: dict[str, Any]) -> Key:
    return line["suite"], line["conversation"], line["seed"]


def _counts(line: dict[str, Any]) -> list[Counts]:
    """Of each turn of a journal line."""
    turns = ([step for step in turn["steps"] if step[0]] for turn in line["turns"])
    return [(sum(accepted for _, accepted, _ in steps), len(steps)) for steps in turns]


def read_lines(path: Path, ignore_torn: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, none if it does not exist. Raises `UserError` for a damaged line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if ignore_torn and not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                raise UserError(f"{path}: line {number} is damaged: remove it and run the same command") from None


def _drop_torn_line(journal: IO[bytes]) -> None:
    """Cut what a kill left behind the last newline."""
    journal.seek(0)
    whole = 0
    for line in journal:
        if line.endswith(b"\n"):
            whole += len(line)
    journal.truncate(whole)
    journal.seek(0, os.SEEK_END)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes `path`'s place when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
