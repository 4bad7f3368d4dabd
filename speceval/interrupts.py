"""Ctrl-C, and a scheduler's SIGTERM, between two steps of an engine: what it has counted and what it has told agree.

The first signal is obeyed when the step that goes on is over, or after `PATIENCE` seconds. The second one is obeyed at
once. In a process of our own (`install`) a further one ends it on the spot, whatever hangs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

PATIENCE = 10.0
"""Seconds that a step may take to end."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run as Ctrl-C does, with its own exit code."""


received: list[int] = []
"""Signals that were raised in this process, for `exit_code`: typer keeps no more of them than 130."""


def exit_code() -> int:
    """128 + the number of the signal that ended a command."""
    return 128 + (received[-1] if received else signal.SIGINT)


@dataclass
class Interrupt:
    """What the user has asked for since `deferred` began."""

    number: int | None = None
    """The signal that came first: to be obeyed at the next whole step."""
    between_steps: bool = True
    """Whether no interrupt can have come within a step: no, once a second signal came, and never where signals are not
    ours."""
    timer: threading.Timer | None = None
    """Loses patience with a step."""

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def raise_(self) -> NoReturn:
        """Raise what the signal stands for."""
        assert self.number is not None
        if self.timer is not None:
            self.timer.cancel()
        received.append(self.number)
        raise Terminated if self.number == signal.SIGTERM else KeyboardInterrupt


def install() -> None:
    """Have SIGTERM raise `Terminated` in this process, as Ctrl-C raises `KeyboardInterrupt`; the next one ends it.

    A signal that the process was started to ignore, as a shell starts jobs in the background, stays ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _raise)


def _raise(number: int, _: Any) -> NoReturn:
    _end_at_the_next()
    Interrupt(number).raise_()


def _end_at_the_next() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: leave(128 + number))


def leave(code: int) -> NoReturn:
    """End this process and what it started, without what others would do at its end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """Note the first signal in place of raising `KeyboardInterrupt`; a second one raises it, and so does `PATIENCE`.

    SIGTERM is taken where `install` was called. Other handlers than Python's own and ours are left alone, and so is
    everything outside the main thread, which no signal reaches.
    """
    interrupt = Interrupt()
    main = threading.get_ident()

    def note(number: int, _: Any) -> None:
        if interrupt.requested:
            interrupt.between_steps = False
            interrupt.raise_()
        interrupt.number = number
        interrupt.timer = threading.Timer(PATIENCE, signal.pthread_kill, (main, number))
        interrupt.timer.daemon = True
        interrupt.timer.start()

    before = {}
    with contextlib.suppress(ValueError):  # no main thread
        for number in SIGNALS:
            if signal.getsignal(number) in (_raise, signal.default_int_handler):
                before[number] = signal.signal(number, note)
    # One that is ignored, as in a job in the background, comes at no time.
    interrupt.between_steps = signal.SIGINT in before or signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    try:
        yield interrupt
    finally:
        if interrupt.timer is not None:
            interrupt.timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        if interrupt.requested and _raise in before.values():
            _end_at_the_next()
