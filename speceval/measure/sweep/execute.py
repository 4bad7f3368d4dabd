"""Running a sweep: cell by cell, with one engine at a time that goes from cell to cell."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from speceval import engines, zoo
from speceval.errors import UserError
from speceval.measure import launch
from speceval.measure.job import Job, against, stored
from speceval.measure.kept import How, Kept
from speceval.measure.output import Watch, output_to
from speceval.measure.replicas.launch import Log, run_all
from speceval.measure.replicas.on_ray import Cluster
from speceval.measure.sweep.cells import Cell, Sweep
from speceval.store import StoredRun, read_run

LOG = "engine.log"
"""Of a run, in its directory."""


@dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    cell: Cell
    run: StoredRun | None
    error: str = ""
    """Why there is no finished run."""
    how: How | None = None
    """How it got its engine; None: it was measured before."""

    @property
    def ok(self) -> bool:
        """Whether there is a finished run whose books balance."""
        return self.run is not None and not self.run.meta.problems


def execute(
    sweep: Sweep,
    watch: Callable[[int, Cell], Watch],
    log: Callable[[Path], AbstractContextManager[None]],
    command: tuple[str, ...] = (),
) -> Iterator[Outcome]:
    """Measure what is not measured yet, and tell of each cell when it is done.

    `watch` makes the display of a cell, by its number from 0. A cell that fails does not stop the others; an interrupt
    does, and the same call goes on. Raises `UserError` where an engine cannot run at all.
    """
    _get_ready(sweep)
    with _quietly_closed() as (kept, logs):
        for number, cell in enumerate(sweep.cells):
            before = dict(kept.how)
            try:
                job = _due(cell)
                known = stored(job)
                if known is None or not known.complete:
                    job = replace(job, command=command)
                    logs.append(job.directory / LOG)
                    known = launch.run(job, watch(number, cell), log, kept.use)
                how = next((name for name, count in kept.how.items() if count > before[name]), None)
                yield Outcome(cell, known, how=how)
            except UserError as error:
                yield Outcome(cell, None, str(error))
            except Exception as error:
                _note(cell.job.directory / LOG)
                yield Outcome(cell, None, f"{type(error).__name__}: {error}")


@contextmanager
def _quietly_closed() -> Iterator[tuple[Kept, list[Path]]]:
    """What keeps an engine, and the logs of the runs that it was given to: to the last of them goes what it says when
    it is closed.
    """
    kept, logs = Kept(), list[Path]()
    try:
        yield kept, logs
    finally:
        with output_to(logs[-1]) if logs and logs[-1].is_file() else nullcontext():
            kept.close()


def execute_on(
    cluster: Cluster, sweep: Sweep, watch: Watch, log: Log, command: tuple[str, ...] = ()
) -> Iterator[Outcome]:
    """`execute` on replicas: whoever is free measures the next cell, or joins another in one. `watch`: of all cells."""
    _get_ready(sweep)
    # Those that others are compared with come first.
    for cells in ([c for c in sweep.cells if c.against is None], [c for c in sweep.cells if c.against is not None]):
        yield from _execute_on(cluster, cells, sweep.directory / "replicas.log", watch, log, command)


def _execute_on(
    cluster: Cluster, cells: list[Cell], log_file: Path, watch: Watch, log: Log, command: tuple[str, ...]
) -> Iterator[Outcome]:
    waiting: dict[Path, Cell] = {}
    jobs: list[Job] = []
    for cell in cells:
        try:
            job = _due(cell)
            known = stored(job)
        except UserError as error:
            yield Outcome(cell, None, str(error))
            continue
        if known is not None and known.complete:
            yield Outcome(cell, known)
        else:
            waiting[job.directory] = cell
            jobs.append(replace(job, command=command))
    for work in run_all(jobs, cluster, watch, log, log_file) if jobs else ():
        cell = waiting[work.job.directory]
        if work.error is None:
            yield Outcome(cell, read_run(cell.job.directory), how=work.how)
        else:
            yield Outcome(cell, None, work.error)


def _due(cell: Cell) -> Job:
    """The job of a cell whose turn it is. Raises `UserError` where the run that it is compared with has failed."""
    return cell.job if cell.against is None else against(cell.job, cell.against)


def _get_ready(sweep: Sweep) -> None:
    """Raises `UserError` where an engine cannot run at all; trains what the cells need of the zoo."""
    jobs = [cell.job for cell in sweep.cells]
    for name in {job.spec.engine for job in jobs}:
        engines.find(name).require()
    drafters = [job.draft.name for job in jobs if job.draft.source == "zoo" and _loads(job.spec.engine)]
    if drafters:
        zoo.ensure(tuple(dict.fromkeys(drafters)))  # all at once: they train side by side


def _note(log: Path) -> None:
    """Put the traceback of what is being handled into a run's log, if it came that far."""
    if log.is_file():
        with log.open("a") as file:
            traceback.print_exc(file=file)


def _loads(engine: str) -> bool:
    return engines.find(engine).loads_checkpoints
