"""Files that others wrote: JSON and YAML as plain data, or one line that says what is wrong with them.

`Fields` is how foreign objects are read, config.json above all: each value by the kind that is needed. Our own files
are read here too, for they can be damaged or edited, and are held against their schema afterwards.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from speceval.errors import UserError

MOST_BYTES = 1 << 29
"""Of a file that is read whole, unpacked."""
DEEPEST = 100
"""Objects and lists within each other."""
MOST_VALUES = 1_000_000
"""In one YAML value: aliases can make a small text a huge one."""
MOST = 1 << 40
"""Largest whole number that a size or a count of a foreign file may be."""

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, finite: bool = True) -> Any:
    """The JSON in a file, compressed or not. `finite`: refuse NaN, infinity and numbers that are too large for a float.

    Raises FileNotFoundError, and `UserError` with one line for whatever cannot be read.
    """
    return parse_json(read_bytes(path), str(path), finite)


def read_bytes(path: Path) -> bytes:
    """Content of a plain file, unpacked if it is gzip. Raises FileNotFoundError, and `UserError` as `read_json` does."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if content[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                content = packed.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged gzip file: {_line(error)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or _line(error)}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: larger than {MOST_BYTES >> 20} MiB")
    return content


def parse_json(content: bytes | str, where: str, finite: bool = True) -> Any:
    """JSON as plain data. Raises `UserError`: not UTF-8, not JSON, nested too deeply, numbers without sense."""
    hooks: Any = {"parse_int": _short} | ({"parse_constant": _no_constant, "parse_float": _finite} if finite else {})
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, **hooks)
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8 text: the file is damaged") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON at line {error.lineno} ({error.msg}): the file is damaged") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply: the file is damaged") from None
    except ValueError as error:
        raise UserError(f"{where}: {_line(error)}: the file is damaged") from None
    if _HALF.search(text) and not _whole(value):
        raise UserError(f"{where}: holds half a character (a lone surrogate): the file is damaged")
    return value


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises `UserError` for one that is none, and OSError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """YAML as plain data: what JSON can hold, dates being text. Raises `UserError` for anything else."""
    try:
        value = yaml.load(text, _Plain)  # noqa: S506 (a safe loader)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    except yaml.YAMLError as error:
        raise NotYaml(f"{where}: not YAML: {_line(error)}") from None
    except (ValueError, OverflowError, TypeError, AttributeError, LookupError) as error:
        raise UserError(f"{where}: not YAML: {_line(error)}") from None
    return plain(value, where)


def plain(value: Any, where: str) -> Any:
    """The value, if JSON can hold it. Raises `UserError`: cycles, dates, keys that are no text, sizes without sense."""
    if fault := _not_plain(value):
        raise UserError(f"{where}: {fault}")
    return value


class NotYaml(UserError):
    """Text that is no YAML at all."""


class _Plain(yaml.SafeLoader):
    """YAML without dates: they stay text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class Fields(dict[str, Any]):
    """A JSON object that somebody else wrote, read by kind; None or nothing for what is absent or null.

    Each of its methods raises `UserError` naming file and field when a value is of another kind.
    """

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        super().__init__(content)
        self.where = where

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str = "config.json") -> Fields:
        """An object as `Fields`; `where`: its place, if it does not say itself."""
        return content if isinstance(content, cls) else cls(content, where)

    def _wrong(self, name: str, value: Any, kind: str) -> UserError:
        shown = json.dumps(value, default=str)
        return UserError(f"{self.where}: {name} is {shown if len(shown) < 40 else f'{shown[:40]}…'}, not {kind}")

    def integer(self, *names: str, most: int = MOST) -> int | None:
        """The first of these fields that is there: a whole number from 0 to `most`."""
        for name in names:
            value = self.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise self._wrong(name, value, f"a whole number from 0 to {most:,}")
            return value
        return None

    def text(self, name: str) -> str | None:
        """A field that holds text."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, value, "text")
        return value

    def texts(self, name: str) -> list[str]:
        """A field that holds a list of texts."""
        value = self.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise self._wrong(name, value, "a list of texts")
        return value or []

    def integers(self, name: str, most: int = MOST) -> list[int]:
        """A field that holds a list of whole numbers from 0 to `most`."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= most for item in value):
            raise self._wrong(name, value, f"a list of whole numbers from 0 to {most:,}")
        return value

    def part(self, name: str) -> Fields:
        """A field that holds an object; an empty one where there is none."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return Fields(value or {}, f"{self.where}: {name}")

    def parts(self, name: str) -> list[Fields]:
        """A field that holds a list of objects."""
        value = self.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
            raise self._wrong(name, value, "a list of objects")
        return [Fields(item, f"{self.where}: {name}") for item in value or []]


def fields(path: Path, shown: str | None = None) -> Fields:
    """The JSON object in a file. Raises `UserError` when it is none; `shown` is what it is called there."""
    where = shown or str(path)
    try:
        content = parse_json(read_bytes(path), where, finite=False)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a JSON object")
    return Fields(content, where)


def _no_constant(name: str) -> Any:
    raise ValueError(f"holds {name}, no number")


def _short(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"the number {text[:20]}… is too large")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _whole(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_plain(value: Any) -> str | None:
    """Why a value is nothing that JSON could hold; None if it is."""
    left, waiting = MOST_VALUES, [(value, 0)]
    while waiting:
        value, depth = waiting.pop()
        left -= 1
        if depth > DEEPEST:
            return "nested too deeply"
        if left < 0:
            return "too large"
        if isinstance(value, dict):
            if any(not isinstance(key, str) for key in value):
                return f"has a key that is no text ({str(next(k for k in value if not isinstance(k, str)))[:40]})"
            waiting += [(item, depth + 1) for item in (*value, *value.values())]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, int) and abs(value) > 1 << 64:
            return "holds a whole number of more than 64 bits"
        elif isinstance(value, str) and not _whole(value):
            return "holds half a character (a lone surrogate)"
        elif not isinstance(value, str | int | float | None):
            return f"holds a {type(value).__name__}, which JSON cannot"
    return None


def _line(error: BaseException) -> str:
    """An error's message in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition("; use sys.set_int")[0].replace("Exceeds the limit", "a number exceeds the limit")
