"""Where an engine's own output goes while it runs, and how progress is watched."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from speceval.errors import UserError
from speceval.measure.runner import Progress
from speceval.protocol import RunSpec
from speceval.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

Watch = Callable[[Progress, RunSpec], AbstractContextManager[Callable[[], None]]]
"""Makes a progress display: a context manager that yields a function to call after each engine step."""


@contextmanager
def unwatched(progress: Progress, spec: RunSpec) -> Iterator[Callable[[], None]]:
    """The `Watch` that shows nothing."""
    yield lambda: None


@contextmanager
def terminal() -> Iterator[Console]:
    """What standard error shows now, and goes on showing while the engine's output goes to a file."""
    if sys.stderr is not sys.__stderr__:  # a notebook's, or a caller's own: no descriptor
        yield console(sys.stderr)
        return
    with os.fdopen(os.dup(2), "w") as own:
        yield console(own)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Send everything written to file descriptors 1 and 2 meanwhile (C++ and child processes too) to `path`.

    Python's own streams as well: in a notebook they are no descriptors.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with _streams_to_descriptors():
                yield
        finally:
            for descriptor, original in zip((1, 2), kept, strict=True):
                os.dup2(original, descriptor)
                os.close(original)


@contextmanager
def gone_if_refused(log: Path, record: Path) -> Iterator[None]:
    """Remove an engine's log when what it was started for is refused, or broken off, and has no record yet; its
    directory too, if nothing else is in it.

    Of an engine that failed (its error has a cause) the log tells why, and stays.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if error.__cause__ is None and not record.exists():
            log.unlink(missing_ok=True)
            with suppress(OSError):
                log.parent.rmdir()
        raise


@contextmanager
def _streams_to_descriptors() -> Iterator[None]:
    """Make sys.stdout and sys.stderr, and log handlers that hold them, write to descriptors 1 and 2 meanwhile."""
    before = sys.stdout, sys.stderr
    # Never closed: a log handler that is made meanwhile keeps its stream.
    now = tuple(os.fdopen(number, "w", 1, errors="backslashreplace", closefd=False) for number in (1, 2))
    moved = [(handler, handler.stream) for handler in _log_handlers() if handler.stream in before]
    for handler, stream in moved:
        handler.setStream(now[before.index(stream)])
    try:
        with redirect_stdout(now[0]), redirect_stderr(now[1]):
            yield
    finally:
        for stream in now:
            stream.flush()
        for handler, stream in moved:
            handler.setStream(stream)


def _log_handlers() -> list[logging.StreamHandler]:
    """Handlers of all loggers that hold a stream; those that look sys.stderr up each time need no help."""
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler) and "stream" in vars(handler)]
