"""The baseline file: what the gate needs of a run, small enough to keep beside released weights.

Counts per conversation and the protocol, no texts; of a replay (`TextBaseline`) the texts and what was kept of them. A
run's directory and the file made from it give the same verdict: both become a `Baseline` or `TextBaseline` first.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator

from speceval.errors import UserError
from speceval.estimate import books, gate
from speceval.estimate import texts as exact
from speceval.estimate.replay import is_replay
from speceval.files import Strict, first_error, write_whole
from speceval.foreign import read_json
from speceval.private import public
from speceval.store import OUTPUTS, REQUEST, StoredRun, pack, read_lines, recorded_columns
from speceval.store.layout import RECORDED_COLUMNS
from speceval.store.older import migrate_fingerprint
from speceval.store.schema import Fingerprint
from speceval.store.tables import OutputLine

Count = Annotated[int, Field(ge=0, le=1 << 53)]
PLAIN = ("steps", "undrafted", "drafted", "accepted", "committed")
"""Counts of a conversation that are of no position."""


class SuiteCounts(Strict, strict=True):
    """Counts of one suite: entry i of a list belongs to conversation i, list j-1 of the last three to position j."""

    conversations: list[str] = Field(min_length=1)
    steps: list[Count]
    """Steps with drafts."""
    undrafted: list[Count] | None = None
    """Steps without; None in a file of an earlier version."""
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
        plain = {name: values for name in PLAIN if (values := getattr(self, name)) is not None}
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
        plain = {name: counts[name].tolist() for name in PLAIN}
        return cls.model_validate({"conversations": [str(name) for name in counts.index], **plain, **at})

    def table(self) -> pd.DataFrame:
        """As `gate.count` gives it."""
        columns = {name: values for name in PLAIN if (values := getattr(self, name)) is not None}
        for name in ("accepted", "drafted", "reached"):
            columns |= {f"{name}_{j}": row for j, row in enumerate(getattr(self, f"{name}_at"), start=1)}
        return pd.DataFrame(columns, index=self.conversations, dtype="int64")


class Weights(Strict, strict=True):
    """Hashes of the checkpoints (`speceval.measure.weights`); None for drafters without weights, such as n-gram."""

    target: str | None
    draft: str | None


class Source(Strict, strict=True):
    """The run that a baseline was made of."""

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

    @field_validator("fingerprint", mode="before")
    @classmethod
    def _of_any_version(cls, value: Any) -> Any:
        return _published(migrate_fingerprint(value)) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _weights_fit_fingerprint(self) -> Self:
        for name, weights in self.weights:
            if getattr(self.fingerprint, name).weights != weights:
                raise ValueError(f"weights.{name} is not that of the fingerprint")
        return self

    @staticmethod
    def facts(run: StoredRun) -> dict[str, Any]:
        """These fields of a stored run. Raises `UserError` when it is unfinished or its books do not balance."""
        meta = run.meta.published()
        if not run.complete:
            raise UserError(f"{run.directory}: the run is unfinished: run its command again, which resumes it")
        if meta.problems:
            raise UserError(f"{run.directory}: the run's books do not balance ({meta.problems[0]}): measure it again")
        fingerprint = meta.fingerprint
        return {
            "run": meta.name,
            "created": meta.created,
            "command": meta.command,
            "speceval": meta.environment.packages.get("speceval"),
            "vllm": fingerprint.engine.vllm,
            "weights": Weights(target=fingerprint.target.weights, draft=fingerprint.draft.weights),
            "fingerprint": fingerprint,
        }


class Baseline(Source, strict=True):
    """One finished run, as the gate sees it."""

    format: Literal["speceval baseline"] = "speceval baseline"
    version: Literal[1] = 1
    """Of this file's layout."""
    suites: dict[str, SuiteCounts] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_fingerprint(self) -> Self:
        if set(self.suites) != set(self.fingerprint.suites):
            raise ValueError("suites are not those of the fingerprint")
        return self

    @classmethod
    def of(cls, run: StoredRun) -> Baseline:
        """From a stored run. Raises `UserError` when it is unfinished, its books do not balance, or it is a replay."""
        facts = cls.facts(run)
        if is_replay(run):
            raise UserError(f"{run.directory}: a replay has no accepted tokens to count: name a run, or say --texts")
        books.require_positions(run, "the gate")
        counts = {suite: SuiteCounts.of(gate.count(*run.suite(suite), run.meta.spec.k)) for suite in run.suites}
        return cls(**facts, suites=counts)

    def counts(self) -> dict[str, pd.DataFrame]:
        """`gate.count`'s table of every suite."""
        return {name: suite.table() for name, suite in self.suites.items()}


def _published(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint without the places where a machine keeps checkpoints: what is compared is what is published."""
    named = dict(fingerprint)
    for role in ("target", "draft"):
        if isinstance(own := fingerprint.get(role), dict) and isinstance(own.get("name"), str):
            named[role] = own | {"name": public(own["name"])}
    return named


class Text(Strict, strict=True):
    """What one turn answered, and what was kept of it."""

    suite: str
    conversation: str
    seed: int
    turn: Annotated[int, Field(ge=1)]
    token_ids: list[int]
    drafted: list[Count]
    """Of every place: one for each token but the first."""
    kept: str
    """kept_j of the places with drafts (`store.pack`, one kind)."""
    p: str | None = None
    """The target's chance of the token due at each place (float32); None where the replay has none."""

    @model_validator(mode="after")
    def _has_every_place(self) -> Self:
        if len(self.drafted) != max(len(self.token_ids) - 1, 0):
            raise ValueError(f"{self.conversation!r}: {len(self.drafted)} places of {len(self.token_ids)} tokens")
        return self

    def table(self, k: int) -> NDArray[np.float32]:
        """kept_j [places, k], NaN where nothing was drafted. Raises `ValueError` when `kept` is no record of that."""
        drafted = np.array(self.drafted, int)
        due = drafted > 0
        try:
            values = np.frombuffer(base64.b64decode(self.kept, validate=True), "<f4").reshape(due.sum(), k)
        except ValueError:
            raise ValueError(f"{self.conversation!r}: kept is not of {due.sum()} places and {k} positions") from None
        if ((values < 0) | (values > 1)).any():
            raise ValueError(f"{self.conversation!r}: kept is no chance")
        if self.p is not None and len(self.chances()) != len(drafted):
            raise ValueError(f"{self.conversation!r}: p is not of {len(drafted)} places")
        table = np.full((len(drafted), k), np.nan, np.float32)
        table[due] = values
        return table

    def chances(self) -> NDArray[np.float32]:
        """The target's, of each place; empty where none are kept. Raises `ValueError`."""
        return np.frombuffer(base64.b64decode(self.p or "", validate=True), "<f4")


class TextBaseline(Source, strict=True):
    """One finished replay, with its texts: a gate on which nothing is left to chance."""

    format: Literal["speceval baseline of texts"] = "speceval baseline of texts"
    version: Literal[1] = 1
    """Of this file's layout."""
    k: Annotated[int, Field(ge=1)]
    asked: dict[str, Any]
    """What a replay of these texts takes over (`measure.replay.INHERITED`)."""
    spread: dict[str, float] | None
    """Of each suite, the largest change of tau that the same weights showed, as a share; None: not measured."""
    texts: list[Text] = Field(min_length=1)

    @model_validator(mode="after")
    def _texts_fit(self) -> Self:
        if len({(text.suite, text.conversation, text.seed, text.turn) for text in self.texts}) < len(self.texts):
            raise ValueError("texts holds one twice")
        if unknown := {text.suite for text in self.texts} - set(self.fingerprint.suites):
            raise ValueError(f"texts of {sorted(unknown)[0]!r}, which is no suite of the fingerprint")
        for text in self.texts:
            text.table(self.k)
        return self

    @classmethod
    def of(cls, run: StoredRun, again: Sequence[StoredRun] = ()) -> TextBaseline:
        """From a replay, and more of the same weights along the same texts. Raises `UserError`."""
        facts, meta = cls.facts(run), run.meta
        if not is_replay(run):
            raise UserError(
                f"{run.directory}: sampled, so its counts hold chance: replay it (`speceval run --replay "
                f"{run.directory} ...`) and name the replay"
            )
        if not (run.directory / OUTPUTS).exists():
            raise UserError(
                f"{run.directory}: a replay whose texts ({OUTPUTS}) are gone: `speceval compare` sets it against "
                "another replay; replay again to check it"
            )
        books.require_texts(run)
        columns = recorded_columns(meta.spec.k, RECORDED_COLUMNS["kept"])
        rows = dict(list(run.steps.groupby(REQUEST, sort=False)))
        texts = []
        for line in read_lines(run.directory / OUTPUTS, kind=OutputLine):
            key = tuple(line[name] for name in REQUEST)
            steps = rows.get(key, run.steps.head(0))
            kept = steps.reindex(columns=columns).to_numpy(np.float32)[steps["drafted"].to_numpy() > 0]
            texts.append(
                Text(
                    **dict(zip(REQUEST, key, strict=True)),
                    token_ids=line["token_ids"],
                    drafted=steps["drafted"].tolist(),
                    kept=pack(kept[:, None]),
                    p=pack(steps[["p_1"]].to_numpy(np.float32)[:, None]) if "p_1" in steps else None,
                )
            )
        made = cls(**facts, k=meta.spec.k, asked=meta.spec.model_dump(mode="json"), spread=None, texts=texts)
        return made.with_spread([cls.of(other) for other in again]) if again else made

    def with_spread(self, again: Sequence[TextBaseline]) -> TextBaseline:
        """The same, with what other replays of its own weights say of rounding. Raises `UserError`."""
        spread = dict.fromkeys(self.steps(), 0.0)
        for other in again:
            if (other.weights, other.fingerprint.replay, other.k) != (self.weights, self.fingerprint.replay, self.k):
                raise UserError(f"--again {other.run}: other weights, texts or K: replay the same in another --batch")
            for suite, steps in other.steps().items():
                spread[suite] = max(spread[suite], abs(exact.change(self.steps()[suite], steps)))
        return self.model_copy(update={"spread": spread})

    def steps(self) -> dict[str, pd.DataFrame]:
        """The table of steps of every suite: REQUEST, step, drafted, kept_j."""
        names = recorded_columns(self.k, RECORDED_COLUMNS["kept"])
        frames: dict[str, list[pd.DataFrame]] = {}
        for text in sorted(self.texts, key=lambda text: (text.suite, text.conversation, text.seed, text.turn)):
            frame = pd.DataFrame(text.table(self.k), columns=names)
            frame = frame.assign(**{name: getattr(text, name) for name in REQUEST}, drafted=text.drafted)
            if text.p is not None:
                frame["p_1"] = text.chances()
            frames.setdefault(text.suite, []).append(frame.assign(step=np.arange(1, len(frame) + 1)))
        return {suite: pd.concat(parts, ignore_index=True) for suite, parts in frames.items()}

    def counts(self) -> dict[str, pd.DataFrame]:
        """What the statistical gate needs (`estimate.texts.count`)."""
        return {suite: exact.count(steps, steps) for suite, steps in self.steps().items()}


def load(path: Path) -> Baseline | TextBaseline:
    """A run's directory or a baseline file. Raises `UserError` in one line."""
    return of_run(books.read(path)) if path.is_dir() else read(path)


def of_run(run: StoredRun) -> Baseline | TextBaseline:
    """A replay with its texts, any other run as counts. Raises `UserError`."""
    return TextBaseline.of(run) if is_replay(run) else Baseline.of(run)


def write(baseline: Baseline | TextBaseline, path: Path) -> int:
    """Write the file, whole or not at all, compressed when its name ends in .gz; returns its bytes."""
    text = json.dumps(baseline.model_dump(mode="json"), ensure_ascii=False, allow_nan=False) + "\n"
    content = text.encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)  # the same run gives the same bytes
    write_whole(path, content)
    return len(content)


def read(path: Path) -> Baseline | TextBaseline:
    """Read a baseline file. Raises `UserError`, in one line, when it is absent, damaged or another version's."""
    try:
        data = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such run or baseline file: `speceval baseline RUN -o FILE` writes one") from None
    kinds: dict[str, type[Baseline] | type[TextBaseline]] = {
        "speceval baseline": Baseline,
        "speceval baseline of texts": TextBaseline,
    }
    kind = kinds.get(str(data.get("format"))) if isinstance(data, dict) else None
    if kind is None:
        raise UserError(f"{path}: not a baseline file: `speceval baseline RUN -o FILE` writes one")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}: write the baseline again") from None
