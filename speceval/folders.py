"""Folders searched for what lies in them, with an end: what is called a folder of runs may be a whole disk."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from speceval.errors import UserError

MOST_FOLDERS = 10_000
"""That hold nothing of what is looked for; of those that do there may be any number."""
MOST_NAMES = 1_000_000
"""In all folders together."""


def holding(root: Path, name: str) -> tuple[list[Path], dict[Path, str]]:
    """The folders at and below `root` that hold something called `name`; those that cannot be listed, with the reason.

    Sorted, each folder once. A link to a folder counts if it holds `name` itself and is not searched further; hidden
    folders below `root` are left out. Raises `UserError` when there is too much to look through.
    """
    held, unlisted, links = [], {}, []
    waiting, idle, names = deque([root]), 0, 0
    while waiting:
        folder = waiting.popleft()
        try:
            with os.scandir(folder) as entries:
                listed = [(entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries]
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue  # who asked sees that nothing was there
        except OSError as error:
            unlisted[folder] = f"cannot be read: {error.strerror}"
            continue
        names += len(listed)
        if any(entry == name for entry, _, _ in listed):
            held.append(folder)
        else:
            idle += 1
        below = [(folder / entry, link) for entry, is_folder, link in listed if is_folder and entry[0] != "."]
        waiting += [path for path, link in below if not link]
        links += [path for path, link in below if link]
        if idle > MOST_FOLDERS or names > MOST_NAMES:
            told = f"{root}: too much to look through for {name} ({idle:,} folders without one)"
            raise UserError(f"{told}: name a folder further down")
    return sorted(held + _linked(links, name, held)), dict(sorted(unlisted.items()))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into what may not be read
        return False


def _linked(links: list[Path], name: str, held: list[Path]) -> list[Path]:
    """Those of `links` that hold `name` and are none of `held`, each target once."""
    known = {path.resolve() for path in held}
    found = []
    for link in sorted(links):
        if os.path.lexists(link / name) and (target := link.resolve()) not in known:
            known.add(target)
            found.append(link)
    return found
