"""Raw rows: of a local file as they are written there, of the dataset hub through the `datasets` library."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from speceval.catalog.hub import online
from speceval.errors import UserError

from .schema import Hub

_PACKED = {b"\x1f\x8b": ("gzip", gzip.open), b"BZh": ("bzip2", bz2.open), b"\xfd7zXZ\x00": ("xz", lzma.open)}
"""First bytes of a packed file -> how it is packed, and what opens it."""
_NOT_READ = {b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_DELIMITERS = {".csv": ",;", ".tsv": "\t"}
"""What may separate the cells; of several what the header line holds most of."""
_LONGEST_CELL = 1 << 30
_NOT_UTF_8 = "not UTF-8 text: save the file as UTF-8"
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)


LONG = 4300
"""Digits of the longest whole number that Python reads."""


class Long(NamedTuple):
    """A whole number that is longer, by its digits."""

    digits: str


class Repeated(dict[str, Any]):
    """A JSON object in which `key` stands more than once: which of its values is meant is not known."""

    key: str = ""


def local_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file or of a JSON array, or the rows of a CSV file, packed with gzip, bzip2 or xz or
    not, or a parquet file's rows. Blank lines are none.

    Nothing is made of their values: no dates, no numbers out of text, no common type of a column.
    Raises UserError with file and row (from 1) for the first that is no JSON object.
    """
    kinds = [suffix.lower() for suffix in path.suffixes[-2:]]
    if kinds[-1:] == [".parquet"]:
        yield from _of_parquet(path)
        return
    number = 0
    packing, file = _opened(path)
    delimiter = next((_DELIMITERS[kind] for kind in kinds if kind in _DELIMITERS), None)
    with file:
        try:
            if _wide(file.peek(2)):
                raise UserError(f"{path}: UTF-16 or UTF-32 text: save the file as UTF-8")
            for row in _of_json(file, path) if delimiter is None else _of_cells(file, path, delimiter):
                number += 1
                yield row
        except _DAMAGED as error:
            raise UserError(f"{path}: row {number + 1}: damaged {packing}file: {error}") from None


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


def _opened(path: Path) -> tuple[str, io.BufferedReader]:
    """How the file is packed ("gzip ", or nothing), and its unpacked content."""
    with path.open("rb") as file:
        head = file.read(6)
    if unread := next((name for magic, name in _NOT_READ.items() if head.startswith(magic)), None):
        raise UserError(f"{path}: packed with {unread}, which is not read here: unpack it")
    for magic, (name, unpack) in _PACKED.items():
        if head.startswith(magic):
            return f"{name} ", io.BufferedReader(unpack(path, "rb"))  # type: ignore[operator]
    return "", path.open("rb")


def _wide(head: bytes) -> bool:
    """Whether a text begins as one of more than a byte a letter does."""
    return head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (
        len(head) > 1 and (head[0] == 0) != (head[1] == 0)
    )


def _of_json(file: io.BufferedReader, path: Path) -> Iterator[dict[str, Any]]:
    head = file.peek(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    return _of_array(file.read(), path) if head.startswith(b"[") else _of_lines(file, path)


def _of_cells(file: io.BufferedReader, path: Path, delimiters: str) -> Iterator[dict[str, Any]]:
    """Every cell is text; an empty one is none, and neither is a row of such alone."""
    csv.field_size_limit(_LONGEST_CELL)
    header = file.peek(4096).partition(b"\n")[0]
    delimiter = max(delimiters, key=lambda one: header.count(one.encode()))
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    number = 0
    while True:
        where = f"{path}: row {number + 1}"
        try:
            row = next(reader, None)
        except UnicodeDecodeError:
            raise UserError(f"{where}: {_NOT_UTF_8}") from None
        except csv.Error as error:
            raise UserError(f"{where}: not CSV ({error})") from None
        if row is None:
            return
        if not any(row.values()):
            continue
        number += 1
        names = reader.fieldnames or ()
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{path}: two columns are called '{repeated}'")
        if None in row or None in row.values():
            raise UserError(f"{where}: not as many cells as there are columns ({len(names)}): is a quote missing?")
        yield {name: cell for name, cell in row.items() if cell}


def _of_lines(file: IO[bytes], path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    for line in file:  # ends at b"\n" alone: text may hold other line ends
        if not line.strip():
            continue
        number += 1
        where = f"{path}: row {number}"
        with _explained(where, ": one object a line, or an array of them"):
            row = _DECODER.decode(line.decode("utf-8-sig"))  # files that were put together have several marks
        yield _checked(row, where)


def _of_parquet(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file: {' '.join(str(error).split())}") from None


def _of_array(content: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The elements one by one, so that an error knows its row."""
    with _explained(f"{path}: row 1"):
        text = content.decode("utf-8-sig")
    number, place = 0, _next(text, text.index("[") + 1)
    while text[place : place + 1] != "]" or number:
        number += 1
        where = f"{path}: row {number}"
        with _explained(where):
            row, place = _DECODER.raw_decode(text, place)
            place = _next(text, place)
            if text[place : place + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
        yield _checked(row, where)
        if text[place] == "]":
            break
        place = _next(text, place + 1)
    if rest := text[place + 1 :].strip():
        raise UserError(f"{path}: {rest[:20]!r} stands behind the end of the array")


def _next(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    names = [name for name, _ in pairs]
    repeated = Repeated(row)
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=lambda digits: int(digits) if len(digits) < LONG else Long(digits)
)


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f'{where}: not a JSON object such as {{"prompt": "…"}}')
    return row


@contextmanager
def _explained(where: str, form: str = "") -> Iterator[None]:
    """Errors of the reader as one line that begins with `where`; what is no JSON at all is told what is to be."""
    try:
        yield
    except UnicodeDecodeError:
        raise UserError(f"{where}: {_NOT_UTF_8}") from None
    except json.JSONDecodeError as error:
        if form and error.doc.strip() in ("{", "["):
            raise UserError(f"{where}: goes over several lines{form} (`jq -c .` writes so)") from None
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(f"{where}: not JSON ({error.msg}, {line}column {error.colno}){form}") from None
    except RecursionError:
        raise UserError(f"{where}: objects or lists too deep within each other") from None
