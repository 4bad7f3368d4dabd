"""Files that are open under a lock, which goes with its process however that ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from speceval.errors import UserError


def open_locked(path: Path, mode: str, *, wait: bool) -> IO[Any]:
    """The file, open; its exclusive lock is held until it is closed.

    `wait`: for another process to let go of it; otherwise BlockingIOError is raised. Raises `UserError` on a system
    without such locks (Windows): there stored runs can be read, but nothing can be measured.
    """
    try:
        import fcntl
    except ImportError:
        raise UserError(
            "nothing can be measured on this system, it has no POSIX file locks: use Linux or WSL"
        ) from None
    file = path.open(mode)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def one_at_a_time(root: Path, what: str = "") -> Iterator[None]:
    """One process builds `what` in the cache folder `root`; what a killed one left (.part-*) is cleared away.

    Raises `UserError` for a cache that cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = open_locked(root / ".lock", "w", wait=True)
    except OSError as error:
        thing = f"{what} to {root}" if what else f"to {root}"
        raise UserError(f"cannot write {thing} ({error.strerror}): set SPECEVAL_CACHE elsewhere") from None
    with handle:
        for leftover in root.glob(".part-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
