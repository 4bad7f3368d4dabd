"""What a sweep's YAML holds, and the requests that it stands for. `docs/measure/many-runs.md` says how to write one."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from speceval.errors import UserError, meant
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
NEAR = {flag(name).name[2:].replace("-", "_"): name for name in FIELDS} | {name: name for name in FIELDS}
"""A field's name, or what the command line calls it -> the field."""

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

    @field_validator("tables", mode="before")
    @classmethod
    def _one_table(cls, tables: Any) -> Any:
        return (tables,) if isinstance(tables, str) else tables

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
        hint = meant(name_or_path, names())
        raise UserError(f"unknown sweep '{name_or_path}'{hint}; known: {', '.join(names())}, or a .yaml file")
    elif not path.is_file():
        raise UserError(f"sweep '{name_or_path}': no such file")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a sweep: the YAML must hold fields such as name, common and axes")
    try:
        file = SweepFile.model_validate({name: value for name, value in content.items() if value is not None})
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error, SweepFile.model_fields)}") from None
    _check_fields(file, path)
    return file


def requests(file: SweepFile, changes: Request | None = None) -> list[Request]:
    """The requests of a sweep, in the file's order, each once; `changes` are the same in all, whatever the file says.

    Raises UserError where there are none.
    """
    _check(f"sweep {file.name}", "--set", changes or {})
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
        why = "an axis is empty, or everything is excluded" if axes else "there is neither an axis nor include"
        raise UserError(f"sweep {file.name}: no runs: {why}")
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
    _check(path, "common", file.common)
    for name, entries in (("include", file.include), ("exclude", file.exclude)):
        for i, entry in enumerate(entries):
            _check(path, f"{name}.{i}", entry, several=True)
    for name, values in file.axes.items():
        for i, value in enumerate(values):
            place = f"axes.{name}.{i}"
            if name in FIELDS:
                _check_value(path, place, name, value)
            elif isinstance(value, dict):
                _check(path, place, value, several=True)
            else:
                no_field = f"'{name}' is no field of a run, so it needs mappings{meant(name, NEAR, says=NEAR)}"
                raise UserError(f"{path}: field '{place}': {no_field}")


def _check(file: Path | str, place: str, fields: Mapping[str, Any], several: bool = False) -> None:
    """Raises UserError for what is no field of a run, or no value of one. `several`: a list stands for several."""
    for name, value in fields.items():
        if name not in FIELDS:
            raise UserError(
                f"{file}: field '{place}.{name}': there is no such field of a run{meant(name, NEAR, says=NEAR)}"
            )
        for one in value if several and name not in LISTS and isinstance(value, list) else [value]:
            _check_value(file, f"{place}.{name}", name, one)


def _check_value(file: Path | str, place: str, name: str, value: Any) -> None:
    """Raises UserError for a value of another type than the field's, or out of its bounds. None: the default."""
    try:
        if value is not None:
            _type(name).validate_python(_value(name, value), strict=True)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"]
        hint = ": several values are an axis" if isinstance(value, list) else ""
        raise UserError(f"{file}: field '{place}': {said[0].lower()}{said[1:]}, not {repr(value)[:80]}{hint}") from None
    except UserError as error:
        raise UserError(f"{file}: field '{place}': {error}") from None


@functools.cache
def _type(name: str) -> TypeAdapter[Any]:
    info = RunSpec.model_fields[name]
    return TypeAdapter(cast(Any, Annotated[info.annotation, info]))


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
    if value is None:
        return None
    if name == "seeds":
        return numbers(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value), "seeds")
    if name == "suites":
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not names or not all(isinstance(one, str) for one in names):
            raise UserError(f"suites {str(value)[:80]}: not names of suites, such as [mt_bench, gsm8k]")
        return tuple(one.strip() for one in names)
    if name == "until" and isinstance(value, str):
        try:
            return float(value.strip().removesuffix("%")) / (100 if "%" in value else 1)
        except ValueError:
            raise UserError(f"until {value}: not a percentage such as 1% or 0.5%") from None
    return value


def _joined(parts: list[Request]) -> Request:
    """One request of several parts; later ones win, mappings are joined, null is the default."""
    request: Request = {}
    for part in parts:
        for name, value in part.items():
            value = _value(name, value)
            request[name] = (request.get(name) or {}) | value if name in MAPPINGS and value is not None else value
    return {name: value for name, value in request.items() if value is not None}


def _has(request: Request, entry: Request) -> bool:
    """Whether a request has all of an entry's fields; of a mapping, all that the entry names."""
    return any(all(_agree(request.get(name), value) for name, value in item.items()) for item in _expanded(entry))


def _agree(asked: Any, value: Any) -> bool:
    part = isinstance(asked, dict) and isinstance(value, dict) and value != {}
    return bool(value.items() <= asked.items() if part else asked == value)
