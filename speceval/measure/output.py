"""Where an engine's own output goes while it runs, and how progress is watched."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from speceval.measure.runner import Progress
from speceval.protocol import RunSpec

Watch = Callable[[Progress, RunSpec], AbstractContextManager[Callable[[], None]]]
"""Makes a progress display: a context manager that yields a function to call after each engine step."""


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Send everything written to file descriptors 1 and 2 meanwhile (C++ and child processes too) to `path`."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in zip((1, 2), kept, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
