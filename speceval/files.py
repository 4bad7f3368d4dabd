"""Files: written whole or not at all, read as YAML, and held against a schema whose first fault is one line."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from speceval.errors import UserError, meant

if TYPE_CHECKING:
    import torch


def write_whole(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file, whole or not at all: under a temporary name beside it, flushed to the disk, then renamed.

    content: text (written as UTF-8), bytes, or a function that writes the path it is given. Folders are made; an
    existing file keeps its permissions. Raises `UserError` for a directory.
    """
    if path.is_dir():
        raise UserError(f"{path}: a directory: name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that others may read too. Raises `OSError` where safetensors has an error of its own."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    path.chmod(0o644)


class Strict(BaseModel):
    """Data with the stated fields alone, unchangeable, without NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def first_error(error: ValidationError, known: Iterable[str] = ()) -> str:
    """The first fault in one line: "field 'a.b': what is wrong", without a field where it concerns the whole.

    known: fields that there are, one of which may have been meant.
    """
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"there is no such field{meant(place, known)}"
    return f"field '{place}': {message}" if place else message
