"""A replica: an engine in a process of its own, which measures the conversations that it is handed."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from speceval.engines.base import Engine
from speceval.errors import UserError
from speceval.measure import launch, record, runner
from speceval.measure.job import Job
from speceval.measure.kept import How, Kept
from speceval.measure.stretch import Memory, Stretch
from speceval.store import Key
from speceval.store.schema import Segment

SECONDS = 2.0
"""Longest time between two reports."""


@dataclass(frozen=True)
class Ready:
    """The engine is what the run asks for."""

    told: record.Told
    how: How
    """How it got it."""
    niceness: int
    """Of its process: above 0 others come first."""


@dataclass(frozen=True)
class Report:
    """What has been measured since the last report."""

    lines: list[dict[str, Any]]
    """Finished conversations, as the journal holds them."""
    segment: Segment
    """The replica's stretch of the run so far, as it would be if it ended now."""


@dataclass(frozen=True)
class Failed:
    """It could not; its engine is closed, and it may be turned to a run again."""

    message: str
    user: bool
    """Whether what was asked for is impossible."""


class Replica:
    """What runs where the accelerator is; whoever has one calls one method at a time."""

    def __init__(self) -> None:
        self._kept = Kept()
        self._hand: _Hand | None = None

    def turn_to(self, job: Job) -> Ready | Failed:
        """Get the engine that a run asks for: a new one, or the last one with other weights of the drafter."""
        self._hand = None
        before = dict(self._kept.how)
        try:
            job = launch.fetch(job)
            with self._kept.use(job) as engine:
                told = record.ask(engine, job)
                engine.warm_up()
                self._hand = _Hand(engine, job)
        except Exception as error:
            return self._failed(error)
        how = next(name for name, count in self._kept.how.items() if count > before[name])
        return Ready(told, how, os.nice(0))

    def advance(self, keys: Sequence[Key]) -> Report | Failed:
        """Take these conversations too, and generate until one is finished, or for `SECONDS`."""
        assert self._hand is not None
        try:
            return self._hand.advance(keys)
        except Exception as error:
            return self._failed(error)

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def close(self) -> None:
        """Give the engine back."""
        self._hand = None
        with suppress(Exception):
            self._kept.close()

    def _failed(self, error: Exception) -> Failed:
        self.close()
        if isinstance(error, UserError):
            return Failed(str(error), user=True)
        traceback.print_exception(error)
        return Failed(f"{type(error).__name__}: {error}", user=False)


class _Hand:
    """The conversations of one run on an engine that is ready for it."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self._k = job.spec.k
        self._items = {(suite.name, item.id, seed): (suite, item, seed) for suite, item, seed in plan(job)}
        self._memory = Memory()
        self._stretch = Stretch(engine, self._memory)
        self._in_hand = runner.InHand(
            engine, job.spec, record.template(job), job.texts, lambda live: self._memory.append(live.record())
        )

    def advance(self, keys: Sequence[Key]) -> Report:
        for key in keys:
            self._in_hand.take(runner.Live(*self._items[key]))
        until = time.monotonic() + SECONDS
        while self._in_hand.lives and not self._memory.lines and time.monotonic() < until:
            self._stretch.tokens += self._in_hand.step()
        return Report(self._memory.take(), self._segment())

    def _segment(self) -> Segment:
        lives = self._in_hand.lives.values()
        if not lives:
            return self._stretch.ended()
        return self._stretch.interrupted([turn for live in lives for turn in live.turns], self._k, between_steps=True)


def plan(job: Job) -> list[Any]:
    """The conversations of a run in the order in which they are handed out."""
    return runner.plan(job.suites, job.spec, by_conversation=job.spec.until is not None)
