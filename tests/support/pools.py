"""Replicas in this process, which die when a test wants them to: a `hand_out.Pool` without Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from speceval.measure.job import Job
from speceval.measure.replicas.hand_out import Event, Lost
from speceval.measure.replicas.replica import Replica
from speceval.store import Key


class Here:
    """The replicas take turns.

    `dies`: whether a replica is killed in the call that it is in, by its number. `late`: calls of others that come
    before the second replica is ready.
    """

    def __init__(
        self, size: int, dies: Callable[[int, list[Key]], bool] = lambda replica, keys: False, late: int = 0
    ) -> None:
        self.size = size
        self.dealt: list[tuple[int, Key]] = []
        """Which replica was given which conversation, in order."""
        self._dies, self._late = dies, late
        self._replicas = [Replica() for _ in range(size)]
        self._calls: list[tuple[int, Job | list[Key]]] = []

    def turn_to(self, replica: int, job: Job) -> None:
        self._calls.append((replica, job))

    def advance(self, replica: int, keys: Sequence[Key]) -> None:
        self.dealt += [(replica, key) for key in keys]
        self._calls.append((replica, list(keys)))

    def next(self, seconds: float) -> tuple[int, Event] | None:
        self._late -= 1
        waits = self._late >= 0 and len(self._calls) > 1 and self._calls[0][0] == 1
        replica, asked = self._calls.pop(int(waits))
        if isinstance(asked, Job):
            return replica, self._replicas[replica].turn_to(asked)
        event = self._replicas[replica].advance(asked)
        if self._dies(replica, asked):
            self._replicas[replica] = Replica()
            return replica, Lost("killed")
        return replica, event
