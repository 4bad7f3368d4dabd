"""Journal lines as the data frames `turns` and `steps`."""

from __future__ import annotations

import base64
import json
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, model_validator

from speceval.errors import UserError
from speceval.store.schema import Skipped, first_fault

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
from speceval.store.layout import (
    RECORDED,
    RECORDED_COLUMNS,
    REQUEST,
    STEP_COLUMNS,
    TIME_COLUMNS,
    TIMES,
    TURN_COLUMNS,
    Counts,
    Key,
    recorded_columns,
)


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
                texts.write("".join(_outputs(line)).encode("utf-8", "surrogatepass"))
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
        kept = {name: value for name, value in turn.items() if name not in ("steps", TIMES, *RECORDED)}
        yield json.dumps(conversation | kept, ensure_ascii=False) + "\n"


def frames(conversations: Iterable[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Journal lines as the data frames `turns` (a row per request) and `steps` (a row per step), sorted."""
    import numpy as np
    import pandas as pd

    requests: list[tuple[Any, ...]] = []
    numbers = array("i")  # drafted, accepted and committed of every step
    recorded: dict[str, list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)
    times: dict[int, list[float]] = {}
    for line in conversations:
        key = _key(line)
        for turn in line["turns"]:
            rows = turn["steps"]
            for kind in RECORDED & turn.keys():
                drafted = sum(step[0] > 0 for step in rows)
                recorded[kind].append((len(requests), unpack(turn[kind], drafted, len(RECORDED_COLUMNS[kind]))))
            if TIMES in turn:
                times[len(requests)] = turn[TIMES]
            numbers.extend(chain.from_iterable(rows))
            requests.append(
                (*key, turn["turn"], line["category"], turn["prompt_tokens"], turn["cached_tokens"],
                 len(turn["token_ids"]), turn["finish_reason"], turn.get("padded_steps", 0), len(rows))
            )  # fmt: skip
    turns = pd.DataFrame(requests, columns=[*(name for name in TURN_COLUMNS if name not in SUMS), "rows"])
    count = turns.pop("rows").to_numpy(np.int64)
    counts = np.array(numbers, np.int32).reshape(-1, 3)
    turns = turns.assign(**_sums(counts.astype(np.int64), np.repeat(np.arange(len(turns)), count), len(turns)))
    turns = turns[list(TURN_COLUMNS)].astype(TURN_COLUMNS)
    if times:
        turns = turns.join(pd.DataFrame.from_dict(times, "index", np.float64, list(TIME_COLUMNS)))
    turns = turns.sort_values(REQUEST)
    order = turns.index.to_numpy()
    rows_of = _ranges(np.cumsum(count)[order] - count[order], count[order])
    steps = turns[REQUEST].loc[np.repeat(order, count[order])]
    numbered = {"step": _ranges(np.ones(len(order), np.int64), count[order])}
    numbered |= dict(zip(("drafted", "accepted", "committed"), counts[rows_of].T, strict=True))
    steps = steps.reset_index(drop=True).assign(**numbered).astype(STEP_COLUMNS)
    for kind in (kind for kind in RECORDED_COLUMNS if kind in recorded):  # in the same order in every process
        table = _recorded_table(recorded[kind], counts[:, 0], count)
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
    if len({values.shape[1:] for _, values in recorded}) > 1:
        raise UserError("the journal's turns were recorded at different K: it is damaged, measure the run again")
    values = np.concatenate([values for _, values in recorded])
    table = np.full((len(drafted), *values.shape[1:]), np.nan, np.float32)
    table[np.repeat(was, count) & (drafted > 0)] = values
    return table.reshape(len(drafted), -1)


def _key(line: dict[str, Any]) -> Key:
    return line["suite"], line["conversation"], line["seed"]


def _counts(line: dict[str, Any]) -> list[Counts]:
    """Of each turn of a journal line."""
    turns = ([step for step in turn["steps"] if step[0]] for turn in line["turns"])
    return [(sum(accepted for _, accepted, _ in steps), len(steps)) for steps in turns]


class _Line(BaseModel):
    """What a line must have; what else it has is left alone."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


Number = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]


class JournalTurn(_Line):
    """A turn of a journal's line."""

    turn: Number
    prompt_tokens: Number
    cached_tokens: Number
    padded_steps: Number = 0
    token_ids: list[Number]
    finish_reason: str
    steps: list[Annotated[list[Number], Field(min_length=3, max_length=3)]]
    """Drafted, accepted and committed."""
    recorded: str | None = None
    kept: str | None = None
    law: str | None = None
    times: Annotated[list[float], Field(min_length=len(TIME_COLUMNS), max_length=len(TIME_COLUMNS))] | None = None

    @model_validator(mode="after")
    def _records_fit(self) -> JournalTurn:
        drafted = sum(step[0] > 0 for step in self.steps)
        for name, columns in RECORDED_COLUMNS.items():
            if (text := getattr(self, name)) is not None:
                size, row = len(base64.b64decode(text, validate=True)), 4 * len(columns) * drafted
                if size % row if row else size:
                    raise ValueError(f"{name} does not fit {drafted} steps")
        return self


class JournalLine(_Line):
    """A conversation of a journal."""

    suite: str
    conversation: str
    seed: int
    category: str | None
    turns: list[JournalTurn]
    skipped: str | None = None
    stretch: Number | None = None


class OutputLine(_Line):
    """A turn of outputs.jsonl."""

    suite: str
    conversation: str
    seed: int
    turn: Number
    token_ids: list[Number]
    user: InstanceOf[str]
    output: InstanceOf[str]
    """Also what is no Unicode text, such as half an emoji."""
    thought_tokens: Number = 0


def read_lines(path: Path, ignore_torn: bool = False, kind: type[BaseModel] = JournalLine) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, none if it does not exist. Raises `UserError` for a damaged line.

    Damaged is also what lacks a field of `kind`, or has one of another type.
    """
    if not path.exists():
        return
    validate = TypeAdapter(kind).validate_python
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if ignore_torn and not line.endswith(b"\n"):
                return
            try:
                content = json.loads(line)
                validate(content)
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                reason = f" ({first_fault(error)})" if isinstance(error, ValidationError) else ""
                raise UserError(
                    f"{path}: line {number} is damaged{reason}: remove it and run the same command"
                ) from None
            yield content
