"""`speceval.sweep`: many runs from one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speceval.api.measuring import cluster
from speceval.api.results import Run
from speceval.api.words import errors_by_parameter
from speceval.measure import sweep as sweeps
from speceval.measure.output import output_to, terminal, unwatched
from speceval.measure.replicas.on_ray import Cluster
from speceval.measure.starting import Starting
from speceval.show import progress as display

HOW = {"start": "new engine", "swap": "drafter swapped", "same": "same engine"}
"""How a run got its engine -> what the progress calls it."""


@dataclass(frozen=True)
class Sweep:
    """What became of a sweep."""

    runs: list[Run]
    """Those that are finished, in the order in which they were measured."""
    failed: dict[str, str]
    """Directory of a run that failed -> why."""
    engines: dict[str, int]
    """How many runs got their engine by a "start", by a "swap" of the drafter, or had the "same" as the one before."""

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)


@errors_by_parameter()
def sweep(
    file: str | Path,
    *,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    until: float | None = None,
    over: str | None = None,
    changes: Mapping[str, Any] | None = None,
    ray: str | None = None,
    replicas: int | None = None,
    gpus_per_replica: int | None = None,
    progress: bool = False,
) -> Sweep:
    """Measure every run of a sweep, as `speceval sweep` does: the same call goes on where an interrupted one was.

    A target is loaded once, and drafters are exchanged in place where nothing but their weights differs. What is
    measured is read back; a run that fails does not stop the others.

    Args:
        file: a YAML file (docs/measure/many-runs.md), or the name of a built-in one: "demo", "demo-all", "paper".
        out: folder of the runs; None: `results/` and the sweep's name.
        data_dir: folder with the suites' data files.
        until: relative half-width of tau's interval at which a run stops, such as 0.01.
        over: drafter whose runs are measured whole; `until` is about the difference of each other run to them.
        changes: fields of a run that are the same in all of them, whatever the file says, such as {"limit": 10}.
        ray: measure on the engines of a Ray cluster: "auto", "local" or its address, "host:port".
        replicas: with `ray`, engines; None: as many as have room.
        gpus_per_replica: with `ray`, accelerators of each; 0: a CPU; None: what `engine_args` share the target among.
        progress: whether to show progress on standard error. Otherwise nothing is printed.

    Raises:
        UserError: the file or a run that it asks for is impossible; before anything starts.
        KeyboardInterrupt: Ctrl-C; what is finished is stored, and the same call goes on.
    """
    asked = dict(changes or {}) | ({} if until is None else {"until": until})
    prepared = sweeps.prepare_sweep(
        sweeps.read_sweep_file(str(file)),
        None if out is None else Path(out),
        None if data_dir is None else Path(data_dir),
        asked,
        over=over,
    )
    named = {
        "out": out,
        "data_dir": data_dir,
        "until": until,
        "over": over,
        "changes": changes,
        "ray": ray,
        "replicas": replicas,
    }
    named |= {"gpus_per_replica": gpus_per_replica}
    words = [repr(str(file)), *(f"{name}={_plain(value)!r}" for name, value in named.items() if value is not None)]
    command = ("python", "-c", f"import speceval; speceval.sweep({', '.join(words)})")
    return collected(list(measure(prepared, progress, command, cluster(ray, replicas, gpus_per_replica))))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def collected(outcomes: list[sweeps.Outcome]) -> Sweep:
    """What became of a sweep, from what became of its cells."""
    counts = {how: sum(outcome.how == how for outcome in outcomes) for how in ("start", "swap", "same")}
    return Sweep(
        [Run.of(outcome.run) for outcome in outcomes if outcome.run is not None],
        {str(outcome.cell.job.directory): outcome.error for outcome in outcomes if outcome.error},
        counts,
    )


def measure(
    prepared: sweeps.Sweep, progress: bool = False, command: tuple[str, ...] = (), on: Cluster | None = None
) -> Iterator[sweeps.Outcome]:
    """Run a prepared sweep, on the engines of a cluster if there is one; `progress`: on standard error, else nothing is
    shown.
    """
    if not progress:
        if on is None:
            yield from sweeps.execute(prepared, lambda number, cell: unwatched, output_to, command)
        else:
            yield from sweeps.execute_on(on, prepared, unwatched, output_to, command)
        return
    total = len(prepared.cells)
    with terminal() as console:
        starting = Starting(console, "the engine")

        def watch(number: int, cell: sweeps.Cell) -> Any:
            return starting.until(display.watcher(console, f"[{number + 1}/{total}] "))

        def log(path: Path) -> AbstractContextManager[None]:
            console.print(f"log: {path}", markup=False, soft_wrap=True)
            return starting.log(path)

        if on is None:
            outcomes = sweeps.execute(prepared, watch, log, command)
        else:
            console.print(
                f"connecting to Ray ({on.address}); log: {prepared.directory / 'replicas.log'}", soft_wrap=True
            )
            whole = display.watcher(console, name=f"sweep {prepared.file.name}")
            outcomes = sweeps.execute_on(on, prepared, whole, output_to, command)
        done = 0
        try:
            for done, outcome in enumerate(outcomes, start=1):
                console.print(f"[{done}/{total}] {_line(outcome)}", markup=False, soft_wrap=True, highlight=False)
                yield outcome
        except KeyboardInterrupt:
            console.print(f"interrupted: {done} of {total} runs are done; the same command goes on")
            raise


def _line(outcome: sweeps.Outcome) -> str:
    """What became of a cell, in one line."""
    label = outcome.cell.label
    if outcome.run is None:
        return f"{label}: FAILED: {outcome.error}"
    if outcome.run.meta.problems:
        return f"{label}: PROBLEM: {outcome.run.meta.problems[0]}"
    run = Run.of(outcome.run)
    taus = ", ".join(f"{name} {run.tau(name)}" for name in run.suites)
    return f"{label}: tau {taus} ({'measured before' if outcome.how is None else HOW[outcome.how]})"
