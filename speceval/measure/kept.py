"""An engine that is kept from one run to the next: a target is loaded once, its drafters are exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from speceval import engines
from speceval.engines.base import Engine, Order
from speceval.measure.job import Job
from speceval.measure.start import order

How = Literal["start", "swap", "same"]
"""How a run gets its engine: a new one, the last one with other weights, the last one as it is."""


class Kept:
    """At most one engine, which the next run takes over if it can."""

    def __init__(self) -> None:
        self.how: dict[How, int] = {"start": 0, "swap": 0, "same": 0}
        """How often each has happened."""
        self._engine: Engine | None = None
        self._order: Order | None = None

    @contextmanager
    def use(self, job: Job) -> Iterator[Engine]:
        """The engine that `job` asks for. One in whose hands a run failed is not used again. Raises `UserError`."""
        engine = self._taken_over(order(job))
        try:
            yield engine
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the engine back."""
        engine, self._engine, self._order = self._engine, None, None
        if engine is not None:
            engine.close()

    def _taken_over(self, wanted: Order) -> Engine:
        how: How = "start" if self._order is None else expected(self._order, wanted)
        if self._engine is not None and (how == "start" or not self._engine.swap(wanted)):
            self.close()
        if self._engine is None:
            how = "start"
            self._engine = engines.open(wanted)
        self.how[how] += 1
        self._order = wanted
        return self._engine


def expected(before: Order, after: Order) -> How:
    """How a run gets its engine after another one, as far as can be told without starting one."""
    if before.engine != after.engine or not engines.find(after.engine).swaps(before, after):
        return "start"
    return "same" if before.draft == after.draft else "swap"
