"""What a sweep's YAML holds, and the requests that it stands for. `docs/measure/many-runs.md` says how to write one."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from speceval.errors import UserError
from speceval.files import Strict, first_error
from speceval.foreign import read_yaml
from speceval.paths import data_directory
from speceval.protocol import RunSpec, flag, numbers

SWEEPS_DIR = data_directory("suites") / "sweeps"
"""The built-in sweeps."""

FIELDS = frozenset(RunSpec.model_fields) - {"replay", "against"}
"""Fields of a request that a sweep may set: the others name another run."""
LISTS = frozenset({"suites", "seeds"})
"""Those that are lists themselves."""
MOST_RUNS = 10_000
"""Of a sweep: each is prepared and checked before anything starts."""
MAPPINGS = frozenset({"chat_template_kwargs", "engine_args", "draft_args"})
"""Those that are mappings themselves."""

Request = dict[str, Any]
"""Fields of one request, as the file has them."""


class SweepFile(Strict):
    """One sweep's YAML."""

    name: str
    title: str = ""
    runs: str = ""
    """What a run's directory is called, as in "{draft}-T{temperature}"; empty: the request's own name."""
    common: Request = Field(default_factory=dict)
    """Fields that all runs share."""
    axes: dict[str, list[Any]] = Field(default_factory=dict)
    """Every combination is a run. An axis called like a field has its values; any other has mappings of fields."""
    include: list[Request] = Field(default_factory=list)
    """Further runs."""
    exclude: list[Request] = Field(default_factory=list)
    """Combinations to leave out: those that have all of an entry's fields."""
    tables: tuple[str, ...] = ("summary",)
    """Layouts of `speceval table` to print at the end."""
    published: bool = False
    """Whether `--dry-run` lists every published figure beside."""

    @field_validator("name")
    @classmethod
    def _name_of_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise ValueError(f"'{name}': letters, digits, '-', '_' and '.', the first a letter or a digit")
        return name


def names() -> list[str]:
    """Names of the built-in sweeps."""
    return sorted(path.stem for path in SWEEPS_DIR.glob("*.yaml"))


def read_sweep_file(name_or_path: str) -> SweepFile:
    """A built-in sweep by name, or a user's file. Raises UserError naming file and field."""
    path = Path(name_or_path).expanduser()
    if name_or_path in names():
        path = SWEEPS_DIR / f"{name_or_path}.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        close = get_close_matches(name_or_path, names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"unknown sweep '{name_or_path}'{hint}; known: {', '.join(names())}, or a .yaml file")
    elif not path.is_file():
        raise UserError(f"sweep '{name_or_path}': no such file")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a sweep: the YAML must hold fields such as name, common and axes")
    try:
        file = SweepFile.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error, SweepFile.model_fields)}") from None
    _check_fields(file, path)
    return file


def requests(file: SweepFile, changes: Request | None = None) -> list[Request]:
    """The requests of a sweep, in the file's order, each once; `changes` are the same in all, whatever the file says.

    Raises UserError where there are none.
    """
    _check_names(f"sweep {file.name}", "--set", changes or {})
    axes = [_few(file, _choices(name, values)) for name, values in file.axes.items()]
    if math.prod(map(len, axes)) > MOST_RUNS:
        raise UserError(f"sweep {file.name}: {math.prod(map(len, axes)):,} runs, at most {MOST_RUNS:,}: leave some out")
    product = [_joined([file.common, *chosen]) for chosen in itertools.product(*axes)] if axes else []
    included = [_joined([file.common, item]) for entry in file.include for item in _few(file, _expanded(entry))]
    for entry in file.exclude:
        if not any(_has(request, entry) for request in product):
            raise UserError(f"sweep {file.name}: exclude {entry}: no combination has that")
    kept = [request for request in product if not any(_has(request, entry) for entry in file.exclude)]
    wanted = [_joined([one, changes or {}]) for one in (*kept, *included)]
    if not wanted:
        raise UserError(f"sweep {file.name}: no runs: an axis is empty, or everything is excluded")
    return list({json.dumps(request, sort_keys=True, default=str): request for request in reversed(wanted)}.values())[
        ::-1
    ]


def _few(file: SweepFile, choices: Iterator[Request]) -> list[Request]:
    """The choices. Raises UserError where there are more than a sweep may have."""
    found = list(itertools.islice(choices, MOST_RUNS + 1))
    if len(found) > MOST_RUNS:
        raise UserError(f"sweep {file.name}: more than {MOST_RUNS:,} runs: leave some out")
    return found


def _check_fields(file: SweepFile, path: Path) -> None:
    places: list[tuple[str, Mapping[str, Any]]] = [("common", file.common)]
    places += [(f"include.{i}", entry) for i, entry in enumerate(file.include)]
    places += [(f"exclude.{i}", entry) for i, entry in enumerate(file.exclude)]
    for name, values in file.axes.items():
        if name in FIELDS:
            continue
        for i, value in enumerate(values):
            if not isinstance(value, dict):
                no_field = f"'{name}' is no field of a run, so it needs mappings{_meant(name)}"
                raise UserError(f"{path}: field 'axes.{name}.{i}': {no_field}")
            places.append((f"axes.{name}.{i}", value))
    for place, fields in places:
        _check_names(path, place, fields)


def _check_names(file: Path | str, place: str, fields: Mapping[str, Any]) -> None:
    for name in fields:
        if name not in FIELDS:
            raise UserError(f"{file}: field '{place}.{name}': there is no such field of a run{_meant(str(name))}")


def _meant(name: str) -> str:
    """Which field may be meant: one has another name than its flag."""
    flags = {flag(field).name[2:].replace("-", "_"): field for field in RunSpec.model_fields if field in FIELDS}
    known = flags | {field: field for field in FIELDS}
    close = get_close_matches(name.replace("-", "_"), sorted(known), n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""


def _choices(name: str, values: list[Any]) -> Iterator[Request]:
    for value in values:
        if name in FIELDS:
            yield {name: _value(name, value)}
        else:
            yield from _expanded(value)


def _expanded(entry: Request) -> Iterator[Request]:
    """A mapping of fields, once for each combination of those that have several values."""
    several = [name for name, value in entry.items() if isinstance(value, list) and name not in LISTS]
    fixed = {name: _value(name, value) for name, value in entry.items() if name not in several}
    for chosen in itertools.product(*(entry[name] for name in several)):
        yield fixed | {name: _value(name, value) for name, value in zip(several, chosen, strict=True)}


def _value(name: str, value: Any) -> Any:
    """A value as the request has it: "0-7" for seeds, "1%" for --until, one suite for a list of one."""
    if name == "seeds":
        return numbers(str(value), "seeds") if isinstance(value, str | int) else tuple(value)
    if name == "suites":
        return (value,) if isinstance(value, str) else tuple(value)
    if name == "until" and isinstance(value, str):
        try:
            return float(value.strip().removesuffix("%")) / (100 if "%" in value else 1)
        except ValueError:
            raise UserError(f"until {value}: not a percentage such as 1% or 0.5%") from None
    return value


def _joined(parts: list[Request]) -> Request:
    """One request of several parts; later ones win, mappings are joined."""
    request: Request = {}
    for part in parts:
        for name, value in part.items():
            value = _value(name, value)
            request[name] = request.get(name, {}) | value if name in MAPPINGS and isinstance(value, dict) else value
    return request


def _has(request: Request, entry: Request) -> bool:
    return any(all(request.get(name) == value for name, value in item.items()) for item in _expanded(entry))
