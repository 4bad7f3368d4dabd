"""The store of one run: `run.json`, `turns.parquet`, `steps.parquet`, `outputs.jsonl`.

While a run goes on, each finished conversation is one line of `journal.jsonl`, written before the next is taken. So a
killed run loses the conversations in flight and nothing more: the next start drops a torn last line and goes on. When
all are in, the tables are made from the journal, each under a temporary name and then renamed, and the journal goes
last.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, KeysView
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from speceval.errors import UserError
from speceval.files import write_whole
from speceval.locks import open_locked
from speceval.store.schema import RunMeta

if TYPE_CHECKING:
    import pandas as pd
from speceval.store.layout import CUT_THOUGHT, JOURNAL, OUTPUTS, RUN, STEPS, STRETCH, TURNS, Counts, Key, write_meta
from speceval.store.read import read_meta
from speceval.store.tables import Tables, _counts, _key, read_lines

SYNC_SECONDS = 1.0
"""Time between two flushes of the journal to the disk itself."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, or a user's share of it, that has no room."""


class Store:
    """A run's directory, open for writing. Use as a context manager: it holds a lock against a second writer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._journal: IO[bytes] | None = None
        self._synced = 0.0
        self.counts: dict[Key, list[Counts]] = {}
        """What each turn of each conversation accepted, in the order in which the conversations came in."""
        self._numbers: dict[Key, int] = {}
        """The stretch of each conversation whose line tells it: those that replicas measured side by side."""
        self.followed, self.cut_thoughts = 0, 0
        """Turns with another one after them, and those of them whose thought never ended."""
        self._tables: Tables | None = None
        """Of the journal as it is now, once they have been asked for."""

    @property
    def done(self) -> KeysView[Key]:
        """The conversations that are in."""
        return self.counts.keys()

    @property
    def numbered(self) -> Counter[int]:
        """Conversations of each stretch that replicas measured side by side, by its place among the run's segments."""
        return Counter(self._numbers.values())

    def order(self) -> list[Key]:
        """The conversations stretch by stretch, those of each in the order in which they came in."""
        order: list[Key] = []
        for numbered, group in groupby(self.counts, self._numbers.__contains__):
            keys = list(group)
            order += sorted(keys, key=self._numbers.__getitem__) if numbered else keys
        return order

    def __enter__(self) -> Store:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"--out {self.directory}: not a directory: name one, or a new one") from None
        try:
            self._journal = open_locked(self.directory / JOURNAL, "ab+", wait=False)
        except BlockingIOError:
            raise UserError(f"{self.directory}: another speceval is writing this run: wait for it") from None
        try:
            self._read()
        except BaseException:
            self._journal.close()
            raise
        _drop_torn_line(self._journal)
        return self

    def _read(self) -> None:
        """Take what an earlier process has measured. Raises `UserError` for a damaged journal."""
        for number, line in enumerate(read_lines(self.directory / JOURNAL, ignore_torn=True), start=1):
            if _key(line) in self.counts:
                raise UserError(f"{self.directory / JOURNAL}: line {number} is there twice: remove it")
            self._count(line)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        assert self._journal is not None
        try:
            self._journal.close()
        except OSError as unwritten:  # the end of a line, which the next start drops
            error = error or unwritten
        if not self.done and not (self.directory / RUN).exists():  # nothing was measured: leave nothing behind
            (self.directory / JOURNAL).unlink()
            if not any(self.directory.iterdir()):
                self.directory.rmdir()
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(
                f"{error.filename or self.directory}: cannot be written: {error.strerror}: make room; what was "
                "finished is stored, the same command resumes"
            ) from error

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
        self._journal.write(json.dumps(conversation, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._journal.flush()  # survives a kill of this process from here on
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fdatasync(self._journal.fileno())
            self._synced = time.monotonic()
        self._tables = None
        self._count(conversation)

    def _count(self, conversation: dict[str, Any]) -> None:
        key = _key(conversation)
        self.counts[key] = _counts(conversation)
        if STRETCH in conversation:
            self._numbers[key] = conversation[STRETCH]
        followed = conversation["turns"][:-1]
        self.followed += len(followed)
        self.cut_thoughts += sum(CUT_THOUGHT in turn for turn in followed)

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The turns and steps so far."""
        whole = self._whole()
        return whole.turns, whole.steps

    def finish(self, meta: RunMeta, counted: Collection[Key] | None = None) -> None:
        """Turn the journal into the tables, of the `counted` conversations (None: of all), and mark the run as over."""
        whole = self._whole()
        kept = whole.places.keys() if counted is None else whole.places.keys() & counted
        turns, steps = whole.of(None if counted is None else kept)
        write_whole(self.directory / OUTPUTS, lambda path: _write_lines(path, map(whole.outputs_of, sorted(kept))))
        for name, frame in ((TURNS, turns), (STEPS, steps)):
            write_whole(self.directory / name, partial(frame.to_parquet, index=False))
        skipped = [line for line in whole.skipped if (line.suite, line.conversation, line.seed) in kept]
        self.write_meta(meta.model_copy(update={"skipped": skipped}))
        (self.directory / JOURNAL).unlink()

    def _whole(self) -> Tables:
        """Everything that the journal tells, parsed once for as long as nothing is appended."""
        if self._tables is None:
            self._tables = Tables.of_journal(self.directory / JOURNAL)
        return self._tables


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(lines)


def _drop_torn_line(journal: IO[bytes]) -> None:
    """Cut what a kill left behind the last newline."""
    journal.seek(0)
    whole = 0
    for line in journal:
        if line.endswith(b"\n"):
            whole += len(line)
    journal.truncate(whole)
    journal.seek(0, os.SEEK_END)
