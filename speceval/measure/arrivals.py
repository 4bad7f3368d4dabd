"""When conversations begin: at random at a given rate, whoever is in hand, or each as soon as there is room."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Literal

from speceval.protocol import digest
from speceval.store import Key


class Arrivals:
    """The moments at which conversations are due, in the order of a run, from now on.

    Gaps between them are exponential (a Poisson process), each made of its conversation's name: all runs at a rate have
    the same ones, whatever is measured, and a run that was resumed has those of what is left.
    """

    def __init__(self, rate: float | Literal["inf"] | None, keys: Sequence[Key]) -> None:
        self._begun, self._due, moment = time.perf_counter(), dict[Key, float](), 0.0
        for key in keys:
            moment += 0.0 if rate is None or rate == "inf" else gap(key) / rate
            self._due[key] = moment

    def wait(self, key: Key) -> float:
        """Seconds until a conversation is due; below 0 it has been for so long."""
        return self._begun + self._due[key] - time.perf_counter()


def gap(key: Key) -> float:
    """Time before a conversation begins, at a rate of 1: exponential, drawn from its name."""
    uniform = (int(digest(["arrival", *key])[:13], 16) + 0.5) / (1 << 52)
    return -math.log(uniform)
