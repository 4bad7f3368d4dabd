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
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from speceval.errors import UserError
from speceval.locks import open_locked

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

SCHEMA_VERSION = 3
"""Runs of versions 1 and 2 are read too: `migrate`."""

RUN, JOURNAL, TURNS, STEPS, OUTPUTS = (
    "run.json",
    "journal.jsonl",
    "turns.parquet",
    "steps.parquet",
    "outputs.jsonl",
)

WORKER_COUNTERS = ("steps_with_q", "steps_one_hot", "steps_structured", "steps_padded")
"""Counters of a segment that schema 1 does not have."""

SYNC_SECONDS = 1.0
"""Time between two flushes of the journal to the disk itself."""

Key = tuple[str, str, int]
"""A conversation of a run: suite, conversation id, seed."""

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


@dataclass
class StoredRun:
    """A run read back. `turns` and `steps` as the estimators take them (see `speceval.acceptance`)."""

    directory: Path
    meta: dict[str, Any]
    turns: pd.DataFrame
    steps: pd.DataFrame

    @property
    def complete(self) -> bool:
        """Whether every conversation of the run is in."""
        return bool(self.meta["status"] != "running")

    @property
    def suites(self) -> list[str]:
        """Names of the suites, in the order in which they were asked for."""
        return list(self.meta["fingerprint"]["suites"])

    @property
    def conversations(self) -> int:
        """Conversations that are in, each seed counted."""
        return len(self.turns[["suite", "conversation", "seed"]].drop_duplicates())


class Store:
    """A run's directory, open for writing. Use as a context manager: it holds a lock against a second writer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._journal: IO[bytes] | None = None
        self._synced = 0.0
        self.done: set[Key] = set()

    def __enter__(self) -> Store:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"--out {self.directory}: not a directory: name one, or a new one") from None
        try:
            self._journal = open_locked(self.directory / JOURNAL, "ab+", wait=False)
        except BlockingIOError:
            raise UserError(f"{self.directory}: another speceval is writing this run: wait for it") from None
        _drop_torn_line(self._journal)
        self.done = {_key(line) for line in read_lines(self.directory / JOURNAL)}
        return self

    def __exit__(self, *_: object) -> None:
        assert self._journal is not None
        self._journal.close()
        if not self.done and not (self.directory / RUN).exists():  # nothing was measured: leave nothing behind
            (self.directory / JOURNAL).unlink()
            if not any(self.directory.iterdir()):
                self.directory.rmdir()

    def read_meta(self) -> dict[str, Any] | None:
        """run.json, or None for a run that has none yet."""
        return read_meta(self.directory) if (self.directory / RUN).exists() else None

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Replace run.json."""
        write_meta(self.directory, meta)

    def append(self, conversation: dict[str, Any]) -> None:
        """Store one finished conversation: safe from kill -9 on return, from a power cut about a second later."""
        assert self._journal is not None
        key = _key(conversation)
        if key in self.done:
            raise ValueError(f"conversation {key} is in the store already")
        self._journal.write(json.dumps(conversation, ensure_ascii=False).encode() + b"\n")
        self._journal.flush()  # survives a kill of this process from here on
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fdatasync(self._journal.fileno())
            self._synced = time.monotonic()
        self.done.add(key)

    def frames(self, counted: Collection[Key] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The turns and steps so far, of the `counted` conversations (None: of all)."""
        return frames(self._lines(counted))

    def _lines(self, counted: Collection[Key] | None) -> Iterator[dict[str, Any]]:
        lines = read_lines(self.directory / JOURNAL)
        return (line for line in lines if counted is None or _key(line) in counted)

    def finish(self, meta: dict[str, Any], counted: Collection[Key] | None = None) -> None:
        """Turn the journal into the tables, of the `counted` conversations (None: of all), and mark the run as over."""
        turns, steps = self.frames(counted)
        with _replacing(self.directory / OUTPUTS) as temporary, temporary.open("w", encoding="utf-8") as file:
            for line in sorted(self._lines(counted), key=_key):
                for turn in line["turns"]:
                    kept = {name: value for name, value in turn.items() if name not in ("steps", *RECORDED)}
                    row = {name: line[name] for name in ("suite", "conversation", "seed", "category")} | kept
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        for name, frame in ((TURNS, turns), (STEPS, steps)):
            with _replacing(self.directory / name) as temporary:
                frame.to_parquet(temporary, index=False)
        self.write_meta({**meta, "skipped": self.skipped(counted)})
        (self.directory / JOURNAL).unlink()

    def skipped(self, counted: Collection[Key] | None = None) -> list[dict[str, Any]]:
        """Conversations that ended before their last turn, and why."""
        lines = (line for line in self._lines(counted) if "skipped" in line)
        return [{name: line[name] for name in ("suite", "conversation", "seed", "skipped")} for line in lines]


def write_meta(directory: Path, meta: dict[str, Any]) -> None:
    """Replace a run's run.json."""
    with _replacing(directory / RUN) as temporary:
        temporary.write_text(json.dumps({"schema": SCHEMA_VERSION, **meta}, indent=2, ensure_ascii=False) + "\n")


def read_meta(directory: Path) -> dict[str, Any]:
    """run.json of a run's directory. Raises `UserError` when there is none or it is not ours."""
    path = directory / RUN
    try:
        meta: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory}: no run here ({RUN} is missing): `speceval ls runs` lists them") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON at line {error.lineno}: the file is damaged") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("schema"), int):
        raise UserError(f"{path}: no schema version: not a speceval run")
    if not 1 <= meta["schema"] <= SCHEMA_VERSION:
        raise UserError(f"{path}: schema {meta['schema']}, this speceval reads 1 to {SCHEMA_VERSION}: update speceval")
    try:
        return migrate(meta)
    except KeyError as error:
        raise UserError(f"{path}: no {error.args[0]}: the file is damaged") from None


def migrate(meta: dict[str, Any]) -> dict[str, Any]:
    """run.json's content of an older schema as this version writes it; what was not recorded then is off or 0.

    2: prefills that vLLM padded are counted beside (`padded_steps`; `migrate_turns`), q is truncated as p is.
    3: r and alpha of every draft may be recorded.
    """
    if meta["schema"] == SCHEMA_VERSION:
        return meta
    since = {"draft_truncation": True, "rejection": "standard", "record": False}
    since |= dict.fromkeys(("replay", "until", "against"))
    meta = {**meta, "spec": since | meta["spec"]}
    meta["fingerprint"] = {"replay": None} | meta["fingerprint"]
    meta["fingerprint"]["engine"] = {"draft_truncation": True} | meta["fingerprint"]["engine"]
    for segment in meta["segments"]:
        segment["counters"] = dict.fromkeys(WORKER_COUNTERS, 0) | segment["counters"]
    return meta | {"schema": SCHEMA_VERSION}


def migrate_turns(turns: pd.DataFrame) -> pd.DataFrame:
    """The turn table of an older schema with the columns of this one."""
    return turns if "padded_steps" in turns else turns.assign(padded_steps=0)


def read_run(directory: Path) -> StoredRun:
    """Read a run, finished or not. Raises `UserError` when the directory holds none or it is damaged."""
    import pandas as pd

    meta = read_meta(directory)
    if meta["status"] == "running":
        turns, steps = frames(read_lines(directory / JOURNAL, ignore_torn=True))
    else:
        try:
            turns, steps = (pd.read_parquet(directory / name) for name in (TURNS, STEPS))
        except (OSError, ValueError) as error:
            raise UserError(f"{directory}: {TURNS} or {STEPS} cannot be read ({error}): run it again") from None
    return StoredRun(directory, meta, migrate_turns(turns), steps)


def frames(conversations: Iterable[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Journal lines as the data frames `turns` (a row per request) and `steps` (a row per step), sorted."""
    import pandas as pd

    turns: list[tuple[Any, ...]] = []
    steps: list[tuple[Any, ...]] = []
    recorded: dict[str, list[tuple[list[int], NDArray[np.float32]]]] = defaultdict(list)
    for line in conversations:
        key = _key(line)
        for turn in line["turns"]:
            rows = turn["steps"]
            verified = [(drafted, accepted, committed) for drafted, accepted, committed in rows if drafted]
            turns.append(
                (*key, turn["turn"], line["category"], turn["prompt_tokens"], turn["cached_tokens"],
                 len(turn["token_ids"]), turn["finish_reason"], len(verified), len(rows) - len(verified),
                 turn.get("padded_steps", 0), sum(d for d, _, _ in verified), sum(a for _, a, _ in verified),
                 sum(1 + a - c for _, a, c in rows))
            )  # fmt: skip
            for kind in RECORDED & turn.keys():
                drafted = [index for index, row in enumerate(rows, start=len(steps)) if row[0]]
                recorded[kind].append((drafted, unpack(turn[kind], len(drafted), len(RECORDED_COLUMNS[kind]))))
            steps.extend((*key, turn["turn"], index, *row) for index, row in enumerate(rows, start=1))
    order = ["suite", "conversation", "seed", "turn"]
    step_frame = pd.DataFrame(steps, columns=list(STEP_COLUMNS)).astype(STEP_COLUMNS)
    for kind, values in recorded.items():
        step_frame = step_frame.join(_recorded_frame(values, len(steps), RECORDED_COLUMNS[kind]))
    return (
        pd.DataFrame(turns, columns=list(TURN_COLUMNS)).astype(TURN_COLUMNS).sort_values(order, ignore_index=True),
        step_frame.sort_values([*order, "step"], ignore_index=True),
    )


def pack(recorded: NDArray[np.float32]) -> str:
    """A turn's record [steps with drafts, kinds, K] as text for the journal (base64 of little-endian float32)."""
    return base64.b64encode(recorded.astype("<f4").tobytes()).decode()


def unpack(text: str, steps: int, kinds: int) -> NDArray[np.float32]:
    """The array of `pack`, for a turn with this many steps that have drafts."""
    import numpy as np

    return np.frombuffer(base64.b64decode(text), "<f4").reshape(steps, kinds, -1)


def _recorded_frame(
    recorded: list[tuple[list[int], NDArray[np.float32]]], steps: int, names: tuple[str, ...]
) -> pd.DataFrame:
    """`recorded_columns` of `names` for rows 0 … steps-1, from (rows, values [rows, len(names), K]) of each turn."""
    import numpy as np
    import pandas as pd

    k = max(values.shape[2] for _, values in recorded)
    table = np.full((steps, len(names), k), np.nan, np.float32)
    table[np.concatenate([rows for rows, _ in recorded])] = np.concatenate([values for _, values in recorded])
    return pd.DataFrame(table.reshape(steps, -1), columns=recorded_columns(k, names))


def list_runs(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The runs below `root`, newest first."""
    found = [(path.parent, read_meta(path.parent)) for path in root.glob(f"**/{RUN}")]
    return sorted(found, key=lambda run: str(run[1].get("created")), reverse=True)


def _key(line: dict[str, Any]) -> Key:
    return line["suite"], line["conversation"], line["seed"]


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
