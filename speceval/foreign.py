"""Files that others wrote: JSON and YAML as plain data, or one line that says what is wrong with them.

Our own files are read here too, for they can be damaged or edited; they are held against their schema afterwards, and a
config.json is read field by field (`speceval.catalog.config`).
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
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
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, finite: bool = True) -> Any:
    """The JSON in a file, compressed or not. `finite`: refuse NaN, infinity and numbers that are too large for a float.

    Raises FileNotFoundError, and `UserError` with one line for whatever cannot be read.
    """
    return parse_json(read_bytes(path), str(path), finite)


def read_bytes(path: Path, unpack: bool = True) -> bytes:
    """Content of a plain file; `unpack`: of what is in it, if it is gzip.

    Raises FileNotFoundError, and `UserError` as `read_json` does.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if unpack and content[:2] == b"\x1f\x8b":
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
        raise UserError(f"{path}: not YAML: no UTF-8 text") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """YAML as plain data: what JSON can hold, dates being text. Raises `UserError` for anything else."""
    try:
        value = yaml.load(text, _Plain)
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


_OF_YAML_1_1 = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "int", "float")}
_INT = re.compile(r"[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)


class _Plain(yaml.SafeLoader):
    """YAML without dates: they stay text. Numbers are decimal, as in JSON and YAML 1.2: 010 is ten, 1e-3 is a number,
    12:30 is text. A key that stands twice is an error, not the last one's value.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OF_YAML_1_1]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping. Raises ValueError for a key that it has twice."""
        own = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith("merge")]
        if twice := next((key for number, key in enumerate(own) if key in own[:number]), None):
            raise ValueError(f"the key '{twice}' stands twice in one mapping")
        return super().construct_mapping(node, deep)


_Plain.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Plain.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Plain.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(str(node.value).replace("_", "")))


def json_object(path: Path, shown: str | None = None) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` when it is none; `shown` is what it is called there."""
    where = shown or str(path)
    try:
        content = parse_json(read_bytes(path, unpack=False), where, finite=False)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a JSON object")
    return content


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
