"""Parts of the answers: thoughts, what follows them, places in the output, lengths of the context. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from speceval.errors import UserError
from speceval.estimate.lengths import contexts, starts
from speceval.store import REQUEST

Kind = Literal["thought", "answer", "output", "context"]
Thoughts = Mapping[tuple[str, str, int, int], int]
"""Tokens of the thought of each request (`REQUEST`) that has one."""


@dataclass(frozen=True)
class Part:
    """Steps by where they start."""

    kind: Kind
    least: int = 0
    """Tokens that are there when a step starts, with `output` of the output, with `context` of the prompt too."""
    most: int | None = None

    def __str__(self) -> str:
        if self.kind in ("thought", "answer"):
            return self.kind
        return f"{self.kind}:{self.least}-{'' if self.most is None else self.most}"


def parse(text: str, flag: str) -> Part:
    """ "thought", "answer", "output:256-1023", "context:8192-". Raises `UserError` that names the flag."""
    match = re.fullmatch(r"(thought|answer)|(output|context):([0-9]{1,9})-([0-9]{0,9})", text.strip())
    if match is None:
        raise UserError(f"{flag} {text[:80]}: not thought, answer, or tokens such as output:256-1023 or context:8192-")
    if match[1]:
        return Part(match[1])  # type: ignore[arg-type]
    least, most = int(match[3]), int(match[4]) if match[4] else None
    if most is not None and most < least:
        raise UserError(f"{flag} {text}: from {least} to {most} there is nothing")
    return Part(match[2], least, most)  # type: ignore[arg-type]


def in_thought(steps: pd.DataFrame, thoughts: Thoughts) -> pd.Series:
    """Whether each step starts in the thought of its request. Index as `steps`."""
    lengths = [thoughts.get(key, 0) for key in _requests(steps)]
    return starts(steps) < pd.Series(lengths, index=steps.index)


def of_part(part: Part, steps: pd.DataFrame, turns: pd.DataFrame, thoughts: Thoughts) -> pd.DataFrame:
    """The steps that start in a part, of one suite's steps and turns.

    `thought` and `answer` are of requests that have a thought; of others nothing is either.
    """
    if part.kind in ("thought", "answer"):
        has = pd.Series([key in thoughts for key in _requests(steps)], index=steps.index, dtype=bool)
        inside = in_thought(steps, thoughts)
        return steps[has & (inside if part.kind == "thought" else ~inside)]
    lengths = starts(steps) if part.kind == "output" else contexts(steps, turns)
    return steps[lengths.between(part.least, float("inf") if part.most is None else part.most)]


def _requests(steps: pd.DataFrame) -> Iterator[Any]:
    return zip(*(steps[name] for name in REQUEST), strict=True)
