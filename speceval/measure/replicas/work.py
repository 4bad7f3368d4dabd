"""A run that replicas measure side by side: its store, what of it is to be handed out, and who has what in hand."""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from contextlib import ExitStack

from speceval.engines.base import Order
from speceval.errors import UserError
from speceval.measure import record, until
from speceval.measure.job import Job
from speceval.measure.kept import How
from speceval.measure.replicas.replica import Ready, Report, plan
from speceval.measure.start import order
from speceval.measure.stretch import in_place
from speceval.store import STRETCH, Key, Store
from speceval.store.schema import RunMeta, Segment, differences

AHEAD = 1
"""Conversations that a replica has beyond those that its engine runs at once: there is always one to go on with."""
MOST_LOSSES = 5
"""Times that a conversation may be lost with its replica, or a replica in a row."""

BEGUN = Segment(conversations=0, tokens=0, seconds=0.0, counters=None, interrupted=True)
"""A stretch of which nothing is known yet."""


class Work:
    """One run. Every time that a replica is turned to it is a stretch of its own, with that engine's own counters."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.order: Order = order(job)
        self.pending = deque[Key]((suite.name, item.id, seed) for suite, item, seed in plan(job))
        self.in_hand: dict[int, set[Key]] = {}
        """By replica: what each that is at it has to finish."""
        self.error: str | None = None
        """Why it is given up."""
        self.how: How | None = None
        """How the first replica at it got its engine."""
        self.done = False
        """Whether its store is closed again: finished, or given up."""
        self.store: Store | None = None
        self.stored = 0
        """Conversations in the store."""
        self._meta: RunMeta | None = None
        self._told: record.Told | None = None
        self._earlier: list[Segment] = []
        self._segments: list[Segment] = []
        self._stretch: dict[int, int] = {}
        self._losses = Counter[Key]()
        self._lost = 0
        self._niceness = 0
        self._goal: until.Goal | None = None
        self._looks: until.Looks | None = None
        self._stack = ExitStack()

    @property
    def unfinished(self) -> int:
        """Conversations that are not in the store."""
        return len(self.pending) + sum(map(len, self.in_hand.values()))

    @property
    def tokens(self) -> int:
        """Committed by now, as far as is known."""
        return sum(segment.tokens for segment in self._segments)

    @property
    def over(self) -> bool:
        """Whether it is given up, or has begun and nothing of it is left."""
        return self.error is not None or (self._meta is not None and not self.unfinished)

    def wants(self) -> bool:
        """Whether one more replica has something to do there."""
        return not (self.done or self.over) and bool(self.pending or not self.in_hand)

    def begun(self, replica: int) -> bool:
        """Whether a replica has the engine for it."""
        return replica in self._stretch

    def open(self) -> None:
        """Open the store, and leave out what is in it. Raises `UserError`."""
        self.store = self._stack.enter_context(Store(self.job.directory))
        self.pending = deque(key for key in self.pending if key not in self.store.done)
        self.stored = len(self.store.done)
        self._goal = until.goal(self.job.spec, self.job.suites, self.job.against)

    def begin(self, replica: int, ready: Ready) -> None:
        """A replica has the engine for it. Raises `UserError` if its engine is not like those of the others."""
        assert self.store is not None
        if self._meta is None:
            self._meta, self._told = record.opened(self.store, self.job, ready.told), ready.told
            self._earlier = self._meta.segments
            if self._goal is not None:
                self._looks = until.Looks(self._goal, self.store)
                self._drop_closed()
        assert self._told is not None
        if changes := differences(self._told.fingerprint, ready.told.fingerprint):
            raise UserError(
                f"replica {replica + 1} differs from the others in what moves tau ({'; '.join(changes)}): all "
                "machines need the same versions and weights"
            )
        self.how = self.how or ready.how
        self._niceness = max(self._niceness, ready.niceness)
        self._stretch[replica] = len(self._segments)
        self._segments.append(BEGUN)
        self._write()

    def deal(self, replica: int) -> list[Key]:
        """The next conversations for a replica, which has them in hand from now on.

        As many as its engine takes, but no more than its share where there are few.
        """
        most = self.job.spec.batch + (AHEAD if self._looks is None else 0)
        mine = self.in_hand[replica]
        room = min(most, math.ceil(self.unfinished / len(self.in_hand))) - len(mine)
        keys = [self.pending.popleft() for _ in range(min(room, len(self.pending)))]
        mine.update(keys)
        return keys

    def take(self, replica: int, report: Report) -> None:
        """Store what a replica has finished."""
        assert self.store is not None
        number = self._stretch[replica]
        for line in report.lines:
            self.store.append({**line, STRETCH: len(self._earlier) + number})
            self.in_hand[replica].discard((line["suite"], line["conversation"], line["seed"]))
            if self._looks is not None:
                self._looks.finished(line["suite"])
                self._drop_closed()
        self._segments[number] = report.segment
        self.stored = len(self.store.done)

    def lose(self, replica: int, reason: str) -> None:
        """A replica is gone: what it had in hand is handed out again, before anything else."""
        self._lost += 1
        lost = self.in_hand.pop(replica, set())
        self.pending.extendleft(lost)
        self._losses.update(lost)
        self._stretch.pop(replica, None)
        for key, times in self._losses.items():
            if times >= MOST_LOSSES:
                self.error = f"conversation {key[1]} of {key[0]} was lost {times} times with its replica: {reason}"

    def leave(self, replica: int) -> None:
        """A replica goes to another run, or away: its stretch is over."""
        self.in_hand.pop(replica, None)
        if self._stretch.pop(replica, None) is not None and self.store is not None:
            self._write()

    def finish(self) -> None:
        """Check the books and make the tables of what is over; of what is given up, leave what there is."""
        if self.error is None:
            assert self.store is not None and self._meta is not None
            meta = self._meta
            meta.segments = in_place([*self._earlier, *self._segments])
            meta.notes.append(f"{len(self._segments)} stretches were measured by replicas, each with its own counters")
            if self._lost:
                meta.notes.append(f"{self._lost} times a replica was lost; what it had in hand was measured again")
            if self._niceness > os.nice(0):
                meta.notes.append(f"replicas ran at niceness {self._niceness}: others came first, times say little")
            record.closed(self.store, self.job, meta, self._goal)
        self.close()

    def close(self) -> None:
        """Leave the run as it is: the same call goes on."""
        if self.store is not None and self._meta is not None and self._meta.status == "running":
            self._write(goes_on=False)
        self.store, self.done = None, True
        self._stack.close()

    def _write(self, goes_on: bool = True) -> None:
        """Keep the stretches so far; of one that goes on, only that it does: a kill leaves its counters unknown."""
        assert self.store is not None and self._meta is not None
        current = set(self._stretch.values()) if goes_on else set()
        known = [BEGUN if number in current else segment for number, segment in enumerate(self._segments)]
        self._meta.segments = in_place([*self._earlier, *known])
        self.store.write_meta(self._meta)

    def _drop_closed(self) -> None:
        assert self._looks is not None
        self.pending = deque(key for key in self.pending if key[0] not in self._looks.closed)
