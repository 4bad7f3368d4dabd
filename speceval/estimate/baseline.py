"""The baseline file: what the gate needs of a run, small enough to keep beside released weights.

Counts per conversation and the protocol, no texts. A run's directory and the file made from it give the same verdict:
both become a `Baseline` first.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, ValidationError, field_validator, model_validator

from speceval.errors import UserError
from speceval.estimate import books, gate
from speceval.estimate.replay import is_replay
from speceval.files import Strict, first_error, write_whole
from speceval.store import StoredRun
from speceval.store.schema import Fingerprint, migrate_fingerprint

Count = Annotated[int, Field(ge=0)]


class SuiteCounts(Strict, strict=True):
    """Counts of one suite: entry i of a list belongs to conversation i, list j-1 of the last three to position j."""

    conversations: list[str] = Field(min_length=1)
    steps: list[Count]
    """Steps with drafts."""
    drafted: list[Count]
    accepted: list[Count]
    committed: list[Count]
    accepted_at: list[list[Count]] = Field(min_length=1)
    """#(A >= j)."""
    drafted_at: list[list[Count]]
    """#(drafted >= j)."""
    reached_at: list[list[Count]]
    """#(A >= j-1 and drafted >= j)."""

    @model_validator(mode="after")
    def _sums_agree(self) -> SuiteCounts:
        if len(set(self.conversations)) != len(self.conversations):
            raise ValueError("conversations names one twice")
        by_position = {"accepted_at": self.accepted_at, "drafted_at": self.drafted_at, "reached_at": self.reached_at}
        for name, lists in by_position.items():
            if len(lists) != len(self.accepted_at):
                raise ValueError(f"{name} has {len(lists)} positions, accepted_at {len(self.accepted_at)}")
        plain = {name: getattr(self, name) for name in ("steps", "drafted", "accepted", "committed")}
        for name, values in (*plain.items(), *((name, row) for name, rows in by_position.items() for row in rows)):
            if len(values) != len(self.conversations):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.conversations)} conversations")
        for i, conversation in enumerate(self.conversations):
            accepted, drafted, reached = ([row[i] for row in rows] for rows in by_position.values())
            if (
                sum(accepted) != self.accepted[i]
                or sum(drafted) != self.drafted[i]
                or [self.steps[i], *drafted] != sorted([self.steps[i], *drafted], reverse=True)
                or any(not a <= r <= d for a, r, d in zip(accepted, reached, drafted, strict=True))
            ):
                raise ValueError(f"the counts of conversation {conversation!r} do not add up")
        return self

    @classmethod
    def of(cls, counts: pd.DataFrame) -> SuiteCounts:
        """From `gate.count`'s table."""
        k = sum(str(column).startswith("accepted_") for column in counts)
        at = {
            f"{name}_at": [counts[f"{name}_{j}"].tolist() for j in range(1, k + 1)]
            for name in ("accepted", "drafted", "reached")
        }
        plain = {name: counts[name].tolist() for name in ("steps", "drafted", "accepted", "committed")}
        return cls.model_validate({"conversations": [str(name) for name in counts.index], **plain, **at})

    def table(self) -> pd.DataFrame:
        """As `gate.count` gives it."""
        columns = {name: getattr(self, name) for name in ("steps", "drafted", "accepted", "committed")}
        for name in ("accepted", "drafted", "reached"):
            columns |= {f"{name}_{j}": row for j, row in enumerate(getattr(self, f"{name}_at"), start=1)}
        return pd.DataFrame(columns, index=self.conversations, dtype="int64")


class Weights(Strict, strict=True):
    """Hashes of the checkpoints (`speceval.measure.weights`); None for drafters without weights, such as n-gram."""

    target: str | None
    draft: str | None


class Baseline(Strict, strict=True):
    """One finished run, as the gate sees it."""

    format: Literal["speceval baseline"] = "speceval baseline"
    version: Literal[1] = 1
    """Of this file's layout."""
    run: str
    """Name of the run that the counts are from."""
    created: str
    """When that run began, ISO 8601."""
    command: list[str]
    speceval: str | None
    vllm: str | None
    weights: Weights
    fingerprint: Fingerprint
    """The run's protocol; what `speceval.estimate.comparison` holds against another run's."""
    suites: dict[str, SuiteCounts] = Field(min_length=1)

    @field_validator("fingerprint", mode="before")
    @classmethod
    def _of_any_version(cls, value: Any) -> Any:
        return migrate_fingerprint(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits_fingerprint(self) -> Baseline:
        for name, weights in self.weights:
            if getattr(self.fingerprint, name).weights != weights:
                raise ValueError(f"weights.{name} is not that of the fingerprint")
        if set(self.suites) != set(self.fingerprint.suites):
            raise ValueError("suites are not those of the fingerprint")
        return self

    @classmethod
    def of(cls, run: StoredRun) -> Baseline:
        """From a stored run. Raises `UserError` when it is unfinished, its books do not balance, or it is a replay."""
        meta = run.meta
        if not run.complete:
            raise UserError(f"{run.directory}: the run is unfinished: run its command again, which resumes it")
        if meta.problems:
            raise UserError(f"{run.directory}: the run's books do not balance ({meta.problems[0]}): measure it again")
        if is_replay(run):
            raise UserError(f"{run.directory}: a replay has no accepted tokens to count: name a run")
        fingerprint = meta.fingerprint
        return cls(
            run=meta.name,
            created=meta.created,
            command=meta.command,
            speceval=meta.environment.packages.get("speceval"),
            vllm=fingerprint.engine.vllm,
            weights=Weights(target=fingerprint.target.weights, draft=fingerprint.draft.weights),
            fingerprint=fingerprint,
            suites={suite: SuiteCounts.of(gate.count(*run.suite(suite), meta.spec.k)) for suite in run.suites},
        )

    def counts(self) -> dict[str, pd.DataFrame]:
        """`gate.count`'s table of every suite."""
        return {name: suite.table() for name, suite in self.suites.items()}


def load(path: Path) -> Baseline:
    """A run's directory or a baseline file. Raises `UserError` in one line."""
    return Baseline.of(books.read(path)) if path.is_dir() else read(path)


def write(baseline: Baseline, path: Path) -> int:
    """Write the file, whole or not at all, compressed when its name ends in .gz; returns its bytes."""
    text = json.dumps(baseline.model_dump(mode="json"), ensure_ascii=False, allow_nan=False) + "\n"
    content = text.encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)  # the same run gives the same bytes
    write_whole(path, content)
    return len(content)


def read(path: Path) -> Baseline:
    """Read a baseline file. Raises `UserError`, in one line, when it is absent, damaged or another version's."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        data = json.loads(content)
    except FileNotFoundError:
        raise UserError(f"{path}: no such run or baseline file: `speceval baseline RUN -o FILE` writes one") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: not JSON at line {error.lineno}: the baseline file is damaged; write it again"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}): the baseline file is damaged; write it again") from None
    if not isinstance(data, dict) or data.get("format") != "speceval baseline":
        raise UserError(f"{path}: not a baseline file: `speceval baseline RUN -o FILE` writes one")
    try:
        return Baseline.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}: write the baseline again") from None
