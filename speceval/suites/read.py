"""Raw rows through the `datasets` library, from a local JSON-lines file or from the hub."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speceval.catalog.hub import online
from speceval.errors import UserError

from .rows import normalise_row
from .schema import Hub, SuiteFile


def local_rows(path: Path, suite: SuiteFile) -> list[Mapping[str, Any]]:
    """Rows of a .jsonl or .jsonl.gz file. Raises UserError with row and reason if it cannot be read."""
    import datasets

    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty: no rows")
    try:
        with _quiet():
            return list(datasets.load_dataset("json", data_files=str(path), split="train"))
    except Exception as error:  # the library wraps whatever its JSON reader says, without the row
        _name_bad_row(path, suite)
        raise UserError(f"{path}: cannot be read as JSON lines: {' '.join(str(error).split())}") from None


def hub_rows(hub: Hub, files: tuple[str, ...], name: str) -> list[Mapping[str, Any]]:
    """Rows from the dataset hub or its cache. Raises UserError that names the file to provide instead."""
    from huggingface_hub import constants

    instead = f"give --data-dir DIR where DIR holds {files[0]}"
    if not constants.HF_HUB_OFFLINE and not online():
        cached = "or set HF_HUB_OFFLINE=1 if the hub's cache has it"
        raise UserError(f"suite {name}: the dataset hub cannot be reached: {instead}, {cached}")
    import datasets

    try:
        return list(datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision))
    except Exception as error:  # any transport, cache or format error of the library
        reason = " ".join(str(error).split())
        raise UserError(
            f"suite {name}: '{hub.id}' cannot be loaded from the dataset hub ({reason}): {instead}"
        ) from None


def _name_bad_row(path: Path, suite: SuiteFile) -> None:
    """Raise UserError for the first line that is not JSON, not an object, or lacks a field, or if there is no line."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: damaged gzip file: {error}") from None
    if not content.strip():
        raise UserError(f"{path}: empty: no rows")
    for number, line in enumerate(content.split(b"\n"), start=1):
        _check_line(line, number, path, suite)


def _check_line(line: bytes, number: int, path: Path, suite: SuiteFile) -> None:
    if not line.strip():
        return
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: row {number}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: row {number}: not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: row {number}: not a JSON object")
    normalise_row(record, number, suite, str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no log line beside our own error."""
    import datasets

    bars, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
