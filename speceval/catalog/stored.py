"""Drafters that come with the project: a small file each in results/drafters, made a checkpoint for their target."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from speceval.errors import UserError
from speceval.paths import data_directory

from . import built, packed


def place(name: str, stored: str, target: Path) -> Path:
    """Where the checkpoint of the drafter `name` is, or will be; `stored`: its file's name, without suffix."""
    return built.place(name, [_digest(_file(stored)), target.name], [packed])


def fetch(stored: str, target: Path, directory: Path) -> None:
    """Make the checkpoint, once. Raises UserError if the file is missing."""
    built.ensure(directory, lambda empty: packed.write_checkpoint(_file(stored), target, empty))


def _file(stored: str) -> Path:
    path = data_directory("drafters") / f"{stored}.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: not there, so this installation has no drafter {stored}")
    return path


@lru_cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
