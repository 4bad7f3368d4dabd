"""The runs of a sweep, checked before anything starts and put in an order in which each target is loaded once."""

from __future__ import annotations

import functools
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speceval import catalog, suites
from speceval.errors import DoesNotFit, UserError
from speceval.measure.job import Job, prepare
from speceval.measure.kept import How, expected
from speceval.measure.start import order
from speceval.measure.sweep.file import Request, SweepFile, requests
from speceval.protocol import differing
from speceval.store import RUN


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    job: Job
    how: How
    """How it gets its engine when all cells before it are measured, as far as can be told."""

    against: Path | None = None
    """The run whose difference `--until` is about: to be measured before."""
    settings: str = ""
    """What else of its request is not the same in all runs of the sweep, as in "top_k=50 seeds=0-9"."""

    @property
    def label(self) -> str:
        """What a reader tells it by."""
        spec = self.job.spec
        return f"{spec.target} {spec.draft} T={spec.temperature:g} K={spec.k} {spec.drafting} {self.settings}".rstrip()


@dataclass(frozen=True)
class Sweep:
    """A sweep that has been asked for and found possible."""

    file: SweepFile
    directory: Path
    """Where its runs are."""
    cells: list[Cell]
    left_out: list[str]
    """Fields that do not go together, such as a target and the drafter of another one: a line each."""


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
    asked = requests(file, dict(changes or {}))
    load = functools.lru_cache(maxsize=None)(load)
    jobs: dict[Path, Job] = {}
    good, misfits = list[Request](), list[tuple[Request, DoesNotFit]]()
    if over is not None and not any(request.get("draft") == over for request in asked):
        raise UserError(f"--over {over}: no run of sweep {file.name} has this drafter")
    for request in asked:
        if over is not None and "until" not in request:
            raise UserError(f"--over {over}: says what --until is about: give --until too, or leave it out")
        if request.get("draft") == over:
            request = {name: value for name, value in request.items() if name != "until"}
        try:
            job = _job(file, request, directory, data_dir, load)
        except DoesNotFit as misfit:
            misfits.append((request, misfit))
            continue
        good.append(request)
        other = jobs.setdefault(job.directory, job)
        if other is not job and other.spec != job.spec:
            raise UserError(f"sweep {file.name}: two runs are called {job.directory.name}: 'runs' must tell them apart")
    bases = {} if over is None else _bases(list(jobs.values()), over)
    left_out = _left_out(file, good, misfits)
    return Sweep(file, directory, _ordered(list(jobs.values()), bases), left_out)


OF_THE_DRAFTER = frozenset({"draft", "method", "draft_args", "until", "shuffle_seed"})
"""Fields in which a run may differ from the one that it is compared with."""


def _bases(jobs: list[Job], over: str) -> dict[Path, Path]:
    """Directory of each run that does not have this drafter -> that of the run that does and is like it otherwise."""
    bases = {}
    for job in jobs:
        if job.spec.draft != over:
            alike = [other for other in jobs if other.spec.draft == over and _rest(other) == _rest(job)]
            if len(alike) != 1:
                raise UserError(
                    f"--over {over}: {len(alike) or 'no'} runs of it are like {job.directory.name} in all but the "
                    "drafter, one is needed: exclude what is not to be compared"
                )
            bases[job.directory] = alike[0].directory
    return bases


def _rest(job: Job) -> str:
    return job.spec.model_dump_json(exclude=set(OF_THE_DRAFTER))


IN_COLUMNS = ("target", "draft", "k", "temperature", "drafting")
"""Fields that a plan has columns for, and a label names."""


def _left_out(file: SweepFile, good: list[Request], misfits: list[tuple[Request, DoesNotFit]]) -> list[str]:
    """A line for each combination that cannot be. Raises `UserError` for one with a value that no run has."""
    for request, misfit in misfits:
        if not all(any(request.get(name) == other.get(name) for other in good) for name in misfit.fields):
            raise UserError(f"sweep {file.name}: {_place(request)}: {misfit}")
    return list(dict.fromkeys(f"{_place(request, misfit.fields)}: {misfit}" for request, misfit in misfits))


def _place(request: Request, names: Collection[str] = ("target", "draft", "temperature")) -> str:
    return ", ".join(f"{name}={request[name]}" for name in names if name in request)


def _job(file: SweepFile, request: Request, directory: Path, data_dir: Path | None, load: Any) -> Job:
    """Raises `UserError` that names the run, and `DoesNotFit`."""
    for name in ("target", "draft", "temperature"):
        if name not in request:
            raise UserError(f"sweep {file.name}: a run has no {name}: name it in common or in an axis")
    fields = {name: value for name, value in request.items() if name != "suites"}
    try:
        catalog.resolve(request["target"], request["draft"], request.get("method"))
    except UserError as error:
        raise DoesNotFit(str(error), "target", "draft") from None
    try:
        job = prepare(
            suite_names=list(request.get("suites", ())), data_dir=data_dir, out=directory, load=load, **fields
        )
        return replace(job, directory=directory / _name(file, job))
    except DoesNotFit:
        raise
    except UserError as error:
        raise UserError(f"sweep {file.name}: {_place(request)}: {error}") from None


def _name(file: SweepFile, job: Job) -> str:
    """What the directory of a run is called."""
    if not file.runs:
        return job.spec.name
    values = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in job.spec}
    values |= {name: values[name].rstrip("/").rsplit("/", 1)[-1] for name in ("target", "draft")}  # hub ids, folders
    try:
        parts = list(string.Formatter().parse(file.runs))
        name = "".join(text + ("" if field is None else values[field]) for text, field, *_ in parts)
    except (KeyError, ValueError) as error:
        raise UserError(f"field 'runs': {file.runs}: {error} is no field of a run") from None
    fields = [field for _, field, *_ in parts if field is not None]
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise UserError(f"field 'runs': {file.runs}: a field is its name alone in braces, as in {{temperature}}")
    if not fields or "/" in name or name.startswith(".") or name == RUN:
        raise UserError(f"field 'runs': {file.runs}: must be the name of a folder with fields in it")
    return name


def _ordered(jobs: list[Job], bases: Mapping[Path, Path]) -> list[Cell]:
    """The jobs such that a target is loaded once where that can be, in the file's order otherwise.

    bases: directory of a run -> of the one that has to come before it.
    """
    orders = {id(job): order(job) for job in jobs}
    settings: dict[int, str] = {}
    for target in {job.spec.target for job in jobs}:  # what a target brings with it tells none of its runs apart
        own = [job for job in jobs if job.spec.target == target]
        told = differing([job.spec for job in own], IN_COLUMNS)
        settings |= {id(job): text for job, text in zip(own, told, strict=True)}
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
        cells.append(Cell(job, how, bases.get(job.directory), settings[id(job)]))
    return cells
