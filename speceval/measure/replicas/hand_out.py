"""Conversations handed out to replicas one by one, of one run or of many; what a lost replica had is handed out again.

A replica is at one run at a time. One that has nothing left to do there goes where its engine serves as it is or with
other weights of the drafter, else to a run that nobody is at, else where most is left: `choose`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from speceval import interrupts
from speceval.engines.base import Order
from speceval.errors import UserError
from speceval.measure.job import Job
from speceval.measure.kept import How, expected
from speceval.measure.replicas.replica import SECONDS, Failed, Ready, Report
from speceval.measure.replicas.work import MOST_LOSSES, Work
from speceval.measure.runner import Progress
from speceval.store import Key

TICK = 0.5
"""Seconds between two looks at whether the user wants an end."""


@dataclass(frozen=True)
class Lost:
    """A replica is gone, and another one is being made in its place."""

    reason: str


Event = Ready | Report | Failed | Lost


class Pool(Protocol):
    """Replicas, wherever they are. Each does one thing at a time."""

    size: int

    def turn_to(self, replica: int, job: Job) -> None:
        """Have `Replica.turn_to` called."""

    def advance(self, replica: int, keys: Sequence[Key]) -> None:
        """Have `Replica.advance` called."""

    def next(self, seconds: float) -> tuple[int, Event] | None:
        """Which replica is done, and with what; None if none is within so many seconds."""


class HandOut:
    """Runs, and the replicas that measure them."""

    def __init__(self, jobs: Sequence[Job], pool: Pool) -> None:
        self.works = [Work(job) for job in jobs]
        self.progress = Progress(
            sum(len(work.pending) for work in self.works), counts={} if len(self.works) == 1 else None
        )
        self.changed: Callable[[], None] = lambda: None
        """To be called when `progress` has changed."""
        self.how: dict[How, int] = {"start": 0, "swap": 0, "same": 0}
        """How often a replica got its engine in each way."""
        self.lost: list[str] = []
        """A line for each time that a replica was lost."""
        self._pool = pool
        self._at: dict[int, Work] = {}
        self._engine: dict[int, Order] = {}
        self._advancing: set[int] = set()
        self._losses = Counter[int]()
        self._told: set[int] = set()

    def run(self) -> Iterator[Work]:
        """Measure everything; a run is told of when it is finished or given up (`Work.error`).

        An interrupt leaves stores that the same call resumes.
        """
        with interrupts.deferred() as interrupt:
            try:
                self._send()
                while True:
                    for number, work in enumerate(self.works):
                        if work.done and number not in self._told:
                            self._told.add(number)
                            yield work
                    if len(self._told) == len(self.works):
                        break
                    if event := self._pool.next(TICK):
                        self._obey(*event)
                        self._send()
                    if interrupt.requested:
                        interrupt.raise_()
            except BaseException:
                self._collect()
                raise
            finally:
                for work in self.works:
                    work.close()

    def _obey(self, replica: int, event: Event) -> None:
        """Take what a replica tells, and give it more of the same run."""
        self._advancing.discard(replica)
        work = self._at[replica]
        if isinstance(event, Ready):
            self.how[event.how] += 1
            self._engine[replica] = work.order
        elif not isinstance(event, Report):
            self._engine.pop(replica, None)
        if not work.done:
            self._take(replica, work, event)
            self._show()
        keys = work.deal(replica) if not work.done and work.begun(replica) else []
        if keys or (not work.done and work.in_hand.get(replica)):
            self._advancing.add(replica)
            self._pool.advance(replica, keys)
        else:
            work.leave(replica)
            del self._at[replica]

    def _take(self, replica: int, work: Work, event: Event) -> None:
        try:
            if isinstance(event, Ready):
                work.begin(replica, event)
            elif isinstance(event, Report):
                self._losses[replica] = 0
                work.take(replica, event)
            elif isinstance(event, Failed) and (event.user or not work.begun(replica)):
                work.error = event.message
            else:
                self._lose(replica, work, event)
        except UserError as error:
            work.error = str(error)
        if work.over:
            work.finish()

    def _lose(self, replica: int, work: Work, event: Failed | Lost) -> None:
        reason = event.reason if isinstance(event, Lost) else event.message
        self.lost.append(f"replica {replica + 1}: {reason}")
        self._losses[replica] += 1
        work.lose(replica, reason)
        if all(self._losses[one] >= MOST_LOSSES for one in range(self._pool.size)):
            for each in self.works:
                if not each.done:
                    each.error = f"every replica was lost {MOST_LOSSES} times in a row: {reason}"
                    each.finish()

    def _send(self) -> None:
        """Send every replica that has nothing to do where there is something."""
        for replica in range(self._pool.size):
            if replica in self._at or self._losses[replica] >= MOST_LOSSES:
                continue
            while (work := choose(self._engine.get(replica), self.works, self._others(replica))) is not None:
                try:
                    if work.store is None:
                        work.open()
                        self._show()
                except UserError as error:
                    work.error = str(error)
                    work.finish()
                    continue
                self._at[replica] = work
                work.in_hand[replica] = set()
                self._pool.turn_to(replica, work.job)
                break

    def _others(self, replica: int) -> list[Order]:
        """The engines that other replicas have, or are getting."""
        at = {id(work): work.order for other, work in self._at.items() if other != replica}
        return [*at.values(), *(order for other, order in self._engine.items() if other not in (replica, *self._at))]

    def _show(self) -> None:
        """Bring `progress` up to date."""
        progress = self.progress
        progress.done = sum(work.stored for work in self.works)
        progress.conversations = progress.done + sum(work.unfinished for work in self.works)
        progress.tokens = sum(work.tokens for work in self.works)
        if len(self.works) == 1 and self.works[0].store is not None:
            progress.counts = self.works[0].store.counts
        self.changed()

    def _collect(self) -> None:
        """Store what replicas have finished by their next report, which comes soon or not at all."""
        with suppress(Exception):
            end = time.monotonic() + 2 * SECONDS
            while self._advancing and time.monotonic() < end:
                replica, event = self._pool.next(TICK) or (0, None)
                if isinstance(event, Report):
                    self._advancing.discard(replica)
                    self._at[replica].take(replica, event)


def choose(engine: Order | None, works: Sequence[Work], others: Sequence[Order] = ()) -> Work | None:
    """Where a replica with this engine (None: without one) goes; None: nowhere, nothing there is worth a start.

    others: engines that the other replicas have.

    First to a run that nobody is at and that its engine serves, as it is or with other weights; then where more waits
    than those at it take at once; then, with a new engine, to a run that nobody is at: one that no other engine serves,
    of the target with most to do for each replica at it; then where some is left that its engine serves. It joins
    others with a new engine where more waits than they take at once, or where there is no other run.
    """
    waiting, crew = Counter[str](), Counter[str]()
    for work in works:
        if not work.done:
            waiting[work.job.target.name] += len(work.pending)
            crew[work.job.target.name] += len(work.in_hand)

    def rank(work: Work) -> tuple[float, float, float] | None:
        how = "start" if engine is None else expected(engine, work.order)
        at, target = len(work.in_hand), work.job.target.name
        if not at:
            if how != "start":
                return (0, how == "swap", 0)
            served = any(expected(other, work.order) != "start" for other in others)
            return (1, served, -waiting[target] / (1 + crew[target]))
        left = len(work.pending) / at
        much = left > work.job.spec.batch
        if how != "start":
            return (0, 2, -left) if much else (2, 0, -left)
        return (3, 0, -left) if much or len(works) == 1 else None

    ranked = [(key, number) for number, work in enumerate(works) if work.wants() and (key := rank(work)) is not None]
    return works[min(ranked)[1]] if ranked else None
