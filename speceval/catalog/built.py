"""Checkpoints that are made on this machine from other files: <cache>/checkpoints/<name>-<digest>."""

from __future__ import annotations

import errno
import hashlib
import inspect
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from speceval.errors import UserError
from speceval.locks import one_at_a_time
from speceval.zoo.build import cache_root


def place(name: str, made_of: Iterable[str], code: Iterable[ModuleType]) -> Path:
    """Where the checkpoint `name` is, or will be: other sources (their hashes) or other code, another directory."""
    state = hashlib.sha256("\n".join(made_of).encode())
    for module in code:
        state.update(inspect.getsource(module).encode())
    return cache_root() / "checkpoints" / f"{name}-{state.hexdigest()[:16]}"


def ensure(directory: Path, write: Callable[[Path], None]) -> Path:
    """`directory`; `write` fills it if it is not there, one process at a time, and it gets its name when complete.

    Raises UserError for a cache that cannot be written, and what `write` raises.
    """
    if directory.is_dir():
        return directory
    root = directory.parent
    with one_at_a_time(root):
        if directory.is_dir():
            return directory
        temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
        try:
            write(temporary)
            temporary.chmod(0o755)
            temporary.rename(directory)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"{root}: {error.strerror}: make room there, or set SPECEVAL_CACHE elsewhere") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return directory
