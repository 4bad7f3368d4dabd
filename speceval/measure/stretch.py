"""One stretch of a run, as run.json keeps it: what was measured, and what the engine counted meanwhile.

After an interruption the engine's counters also hold steps of conversations that are in no table. A finished turn of
such a conversation is known step by step. Of a request in flight only the tokens of each step are: 1 + accepted, but
a step of one token may have had drafts or none. So what unfinished conversations counted is known within bounds.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Protocol

from speceval.engines.base import Counters, Engine
from speceval.store import Key
from speceval.store.schema import Segment

Turn = dict[str, Any]
"""A finished turn as the journal holds it: `steps` of (drafted, accepted, committed), and `padded_steps`."""


class Sink(Protocol):
    """What takes finished conversations: a run's store, or nothing that keeps them."""

    @property
    def done(self) -> Collection[Key]:
        """The conversations that are in."""

    def append(self, conversation: dict[str, Any]) -> None:
        """Take one finished conversation."""


class Memory:
    """Keeps finished conversations until somebody takes them."""

    def __init__(self) -> None:
        self.done: set[Key] = set()
        self.lines: list[dict[str, Any]] = []

    def append(self, conversation: dict[str, Any]) -> None:
        """Keep one."""
        self.done.add((conversation["suite"], conversation["conversation"], conversation["seed"]))
        self.lines.append(conversation)

    def take(self) -> list[dict[str, Any]]:
        """Those that came since the last time."""
        lines, self.lines = self.lines, []
        return lines


class Stretch:
    """The stretch that goes on, from now."""

    def __init__(self, engine: Engine, store: Sink) -> None:
        self.tokens = 0
        """Committed so far."""
        self._engine, self._store, self._first = engine, store, len(store.done)
        self._before, self._start, self._began = engine.counters(), time.perf_counter(), time.time()

    def so_far(self) -> Segment:
        """As a kill leaves it."""
        return self._segment(counters=None, interrupted=True)

    def ended(self) -> Segment:
        """As it ends in order."""
        return self._segment(counters=self._counted())

    def interrupted(self, turns: Iterable[Turn], k: int, between_steps: bool) -> Segment:
        """As an interruption leaves it. `turns`: finished ones of unfinished conversations; `between_steps`: whether
        the engine has told of all that it counted.
        """
        with suppress(Exception):  # an engine that has failed may not answer
            counters = self._counted()
            least, most = unfinished(turns, self._engine.in_flight(), k)
            bounds = {"unfinished_least": least, "unfinished_most": most if between_steps else None}
            return self._segment(counters, interrupted=True, **bounds)
        return self.so_far()

    def _counted(self) -> Counters | None:
        now = self._engine.counters()
        return None if now is None or self._before is None else now.minus(self._before)

    def _segment(self, counters: Counters | None, **ending: Any) -> Segment:
        return Segment(
            conversations=len(self._store.done) - self._first,
            tokens=self.tokens,
            seconds=time.perf_counter() - self._start,
            counters=counters,
            first=self._first,
            began=self._began,
            **ending,
        )


def in_place(segments: Iterable[Segment]) -> list[Segment]:
    """The segments with `first` as follows from how many conversations each has."""
    placed: list[Segment] = []
    for segment in segments:
        first = placed[-1].first + placed[-1].conversations if placed else 0
        placed.append(segment.model_copy(update={"first": first}))
    return placed


def account_for(
    segments: Sequence[Segment], stored: int, numbered: Mapping[int, int] = MappingProxyType({})
) -> list[Segment]:
    """The segments of an unfinished run such that all `stored` conversations belong to one.

    What was killed could not say how many it finished; earlier versions wrote no segment of an interrupted stretch.
    `numbered`: conversations of each stretch whose lines tell it (`Store.numbered`).
    """
    segments = list(segments)
    for number, conversations in numbered.items():
        if number >= len(segments):
            continue
        segments[number] = segments[number].model_copy(update={"conversations": conversations})
    if numbered:
        segments = in_place(segments)
    if segments and segments[-1].counters is None:
        killed = segments.pop()
        segments.append(killed.model_copy(update={"conversations": stored - killed.first}))
    told = sum(segment.conversations for segment in segments)
    if stored > told:
        lost = Segment(conversations=stored - told, tokens=0, seconds=0.0, counters=None, first=told, interrupted=True)
        segments.append(lost)
    return segments


def unfinished(turns: Iterable[Turn], in_flight: Iterable[list[int]], k: int) -> tuple[Counters, Counters]:
    """What the engine counted of conversations that are in no table, at least and at most.

    `in_flight`: tokens of each step of each request in flight, the prefill's first.
    """
    least = most = Counters()
    for turn in turns:
        counted = _of_steps([step[:2] for step in turn["steps"]] + [(k, 0)] * turn["padded_steps"], k)
        counted.steps_padded = turn["padded_steps"]
        least, most = least.plus(counted), most.plus(counted)
    for commits in in_flight:
        accepted = [committed - 1 for committed in commits[1:]]
        least = least.plus(_of_steps([(a, a) for a in accepted], k))
        # A prefill may have been padded.
        most = most.plus(_of_steps([(k, a) for a in accepted] + [(k, 0)] * bool(commits), k))
        most.steps_padded += bool(commits)
    return least, most


def _of_steps(steps: Iterable[tuple[int, int]], k: int) -> Counters:
    """What is counted of steps (drafted, accepted)."""
    rows = [(drafted, accepted) for drafted, accepted in steps if drafted]
    return Counters(
        num_drafts=len(rows),
        num_draft_tokens=sum(drafted for drafted, _ in rows),
        num_accepted_tokens=sum(accepted for _, accepted in rows),
        num_accepted_tokens_per_pos=[sum(accepted >= j for _, accepted in rows) for j in range(1, k + 1)],
    )
