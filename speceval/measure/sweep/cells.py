"""The runs of a sweep, checked before anything starts and put in an order in which each target is loaded once."""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speceval import catalog, suites
from speceval.errors import UserError
from speceval.measure.job import Job, prepare
from speceval.measure.kept import How, expected
from speceval.measure.start import order
from speceval.measure.sweep.file import MAPPINGS, Request, SweepFile, requests
from speceval.store import RUN


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    job: Job
    how: How
    """How it gets its engine when all cells before it are measured, as far as can be told."""

    against: Path | None = None
    """The run whose difference `--until` is about: to be measured before."""

    @property
    def label(self) -> str:
        """What a reader tells it by."""
        spec = self.job.spec
        return f"{spec.target} {spec.draft} T={spec.temperature:g} K={spec.k} {spec.drafting}"


@dataclass(frozen=True)
class Sweep:
    """A sweep that has been asked for and found possible."""

    file: SweepFile
    directory: Path
    """Where its runs are."""
    cells: list[Cell]
    left_out: list[str]
    """Pairs of a target and a drafter that do not belong together, a line each."""


def prepare_sweep(
    file: SweepFile,
    out: Path | None = None,
    data_dir: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    load: Any = suites.load,
    over: str | None = None,
) -> Sweep:
    """Check every run of a sweep. Raises `UserError` with one line, which names the run.

    out: where the runs go, by default `results/<name of the sweep>`. changes: fields that are the same in all runs,
    whatever the file says. load: what loads a suite. over: a drafter: with `until` its runs are measured
    whole, and others until their difference to the run of it that is like them is known.
    """
    directory = out or Path("results") / file.name
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out {directory}: not a directory: name one, or a new one")
    fitting, left_out = _fitting(file, requests(file, dict(changes or {})))
    load = functools.lru_cache(maxsize=None)(load)
    jobs: dict[Path, Job] = {}
    if over is not None and not any(request["draft"] == over for request in fitting):
        raise UserError(f"--over {over}: no run of sweep {file.name} has this drafter")
    for request in fitting:
        if over is not None and "until" not in request:
            raise UserError(f"--over {over}: says what --until is about: give --until too, or leave it out")
        if request["draft"] == over:
            request = {name: value for name, value in request.items() if name != "until"}
        job = _job(file, request, directory, data_dir, load)
        other = jobs.setdefault(job.directory, job)
        if other is not job and other.spec != job.spec:
            raise UserError(f"sweep {file.name}: two runs are called {job.directory.name}: 'runs' must tell them apart")
    bases = {} if over is None else _bases(list(jobs.values()), over)
    return Sweep(file, directory, _ordered(list(jobs.values()), bases), left_out)


OF_THE_DRAFTER = frozenset({"draft", "method", "drafting", "draft_args", "until", "shuffle_seed"})
"""Fields in which a run may differ from the one that it is compared with."""


def _bases(jobs: list[Job], over: str) -> dict[Path, Path]:
    """Directory of each run that does not have this drafter -> that of the run that does and is like it otherwise."""
    bases = {}
    for job in jobs:
        if job.spec.draft != over:
            alike = [other for other in jobs if other.spec.draft == over and _rest(other) == _rest(job)]
            alike = [other for other in alike if other.spec.drafting == job.spec.drafting] or alike
            if len(alike) != 1:
                raise UserError(
                    f"--over {over}: {len(alike) or 'no'} runs of it are like {job.directory.name} in all but the "
                    "drafter, one is needed"
                )
            bases[job.directory] = alike[0].directory
    return bases


def _rest(job: Job) -> str:
    return job.spec.model_dump_json(exclude=set(OF_THE_DRAFTER))


def _fitting(file: SweepFile, asked: list[Request]) -> tuple[list[Request], list[str]]:
    """The requests whose drafter belongs to their target. Raises UserError for a drafter that fits none."""
    problems: dict[tuple[str, str], str] = {}
    for request in asked:
        for name in ("target", "draft"):
            if not isinstance(request.get(name), str):
                raise UserError(f"sweep {file.name}: a run has no {name}: name it in common or in an axis")
        pair = request["target"], request["draft"]
        try:
            catalog.resolve(*pair, request.get("method"))
        except UserError as error:
            problems[pair] = str(error)
    good = [request for request in asked if (request["target"], request["draft"]) not in problems]
    drafts = {request["draft"] for request in good}
    for (_, draft), problem in problems.items():
        if draft not in drafts:
            raise UserError(f"sweep {file.name}: {problem}")
    return good, [f"{draft} with {target}: {problem}" for (target, draft), problem in problems.items()]


def _job(file: SweepFile, request: Request, directory: Path, data_dir: Path | None, load: Any) -> Job:
    fields: Request = {"temperature": None} | request
    names: list[str] = list(fields.pop("suites", ()))
    place = ", ".join(
        f"{name}={value}" for name, value in request.items() if name in ("target", "draft", "temperature")
    )
    try:
        if fields["temperature"] is None:
            raise UserError("temperature is needed: name it in common or in an axis")
        if not isinstance(fields["temperature"], int | float) or isinstance(fields["temperature"], bool):
            raise UserError(f"temperature {fields['temperature']}: not a number")
        for name in MAPPINGS & fields.keys():
            if not isinstance(fields[name], dict):
                raise UserError(f"{name} {fields[name]}: must be a mapping")
        job = prepare(suite_names=names, data_dir=data_dir, out=directory, load=load, **fields)
        name = _name(file, job)
    except UserError as error:
        raise UserError(f"sweep {file.name}: {place}: {error}") from None
    return replace(job, directory=directory / name)


def _name(file: SweepFile, job: Job) -> str:
    """What the directory of a run is called."""
    if not file.runs:
        return job.spec.name
    values = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in job.spec}
    try:
        fields = [field for _, field, *_ in string.Formatter().parse(file.runs) if field is not None]
        name = "".join(
            text + ("" if field is None else values[field]) for text, field, *_ in string.Formatter().parse(file.runs)
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"field 'runs': {file.runs}: {error} is no field of a run") from None
    if not fields or "/" in name or name.startswith(".") or name == RUN:
        raise UserError(f"field 'runs': {file.runs}: must be the name of a folder with fields in it")
    return name


def _ordered(jobs: list[Job], bases: Mapping[Path, Path]) -> list[Cell]:
    """The jobs such that a target is loaded once where that can be, in the file's order otherwise.

    bases: directory of a run -> of the one that has to come before it.
    """
    orders = {id(job): order(job) for job in jobs}
    waiting, cells = list(jobs), list[Cell]()
    while waiting:
        last = cells[-1].job if cells else None
        ways: list[tuple[How, Job]] = [
            ("start" if last is None else expected(orders[id(last)], orders[id(job)]), job)
            for job in waiting
            if bases.get(job.directory) in (None, *(cell.job.directory for cell in cells))
        ]

        def rank(way: tuple[How, Job], last: Job | None = last) -> tuple[int, bool]:
            how, job = way
            return ("same", "swap", "start").index(how), last is not None and job.target != last.target

        how, job = min(ways, key=rank)  # the first of those that are equally good
        waiting.remove(job)
        cells.append(Cell(job, how, bases.get(job.directory)))
    return cells
