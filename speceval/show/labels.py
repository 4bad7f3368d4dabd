"""Names that tell runs apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def directory_names(directories: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many parts before it as it takes to tell different ones apart."""
    parts = [directory.absolute().parts for directory in directories]
    different = len(set(parts))
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == different:
            return names
    return [str(directory) for directory in directories]
