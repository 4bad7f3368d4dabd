"""Ctrl-C between two steps of an engine, not within one: what it has counted and what it has told then agree."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Interrupt:
    """What the user has asked for since `deferred` began."""

    requested: bool = False
    """Ctrl-C was pressed: to be obeyed at the next whole step."""
    between_steps: bool = True
    """Whether `KeyboardInterrupt` cannot have come within a step: no, once Ctrl-C was pressed again, and never where
    signals are not ours."""


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """Note the first Ctrl-C in place of raising `KeyboardInterrupt`; a second one raises it.

    Other handlers than Python's own are left alone, and so is everything outside the main thread, which no signal
    reaches.
    """
    interrupt = Interrupt()

    def note(*_: Any) -> None:
        if interrupt.requested:
            interrupt.between_steps = False
            raise KeyboardInterrupt
        interrupt.requested = True

    try:
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        before = signal.signal(signal.SIGINT, note) if ours else None
    except ValueError:  # no main thread
        ours, before = False, None
    interrupt.between_steps = ours
    try:
        yield interrupt
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
