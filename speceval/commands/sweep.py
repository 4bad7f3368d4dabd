"""`speceval sweep`, and `speceval demo`, which is two sweeps by another name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speceval.commands import options

if TYPE_CHECKING:
    from speceval.measure.replicas.on_ray import Cluster
    from speceval.measure.sweep import Outcome, Sweep
    from speceval.measure.sweep.file import SweepFile


def sweep(
    file: Annotated[str, typer.Argument(help="A YAML file, or a name: demo, demo-all, paper.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be measured, and measure nothing.")] = (
        False
    ),
    until: Annotated[str, typer.Option(help="Stop each run when tau is known to this half-width, such as 1%.")] = "",
    over: Annotated[
        str | None, typer.Option(help="--until is about the difference to the runs of this drafter, which are whole.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Field of all runs, whatever the file says, key=value; may be repeated."),
    ] = None,
    ray: options.Ray = None,
    replicas: options.Replicas = None,
    gpus_per_replica: options.GpusPerReplica = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the suites' data files.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the runs [default: results/<name>].")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure every run of a file: targets × drafters × suites × temperatures, each target loaded once.

    Every run is a directory as `speceval run` makes it. The same command goes on where an interrupted one was; a run
    that fails does not stop the others.
    """
    from speceval.api.measuring import cluster

    on = cluster(ray, replicas, gpus_per_replica)
    _sweep(file, dry_run, until, options.pairs(set_, "--set"), data_dir, out, as_json, on, over)


def demo(
    everything: Annotated[bool, typer.Option("--all", help="Every architecture and loss of the zoo.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory to write [default: results/demo, results/demo-all]."),
    ] = None,
) -> None:
    """Train the zoo, measure its two EAGLE-3 drafters at T=0 and 1, and compare them: `speceval sweep demo`."""
    _sweep("demo-all" if everything else "demo", False, "", {}, None, out, False)


def _sweep(
    file: str,
    dry_run: bool,
    until: str,
    changes: dict[str, Any],
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
    on: Cluster | None = None,
    over: str | None = None,
) -> None:
    from speceval import suites
    from speceval.api import sweeps as api
    from speceval.measure.sweep import prepare_sweep, read_sweep_file

    if (half_width := options.percent(until, "--until")) is not None:
        changes = changes | {"until": half_width}
    load = suites.load_or_count if dry_run else suites.load
    content = read_sweep_file(file)
    _check_tables(content)
    prepared = prepare_sweep(content, out, data_dir, changes, load, over)
    if dry_run:
        _print_plan(prepared, as_json)
        return
    outcomes = list(api.measure(prepared, progress=True, on=on))
    if as_json:
        options.print_json("sweep", _content(prepared, outcomes))
    else:
        _print_outcomes(prepared, outcomes)
    if not all(outcome.ok for outcome in outcomes):
        raise typer.Exit(1)


def _check_tables(content: SweepFile) -> None:
    """Raises UserError for a table that there is not: before anything starts, though it is printed at the end."""
    from speceval.errors import UserError, meant
    from speceval.show.layouts import LAYOUTS

    for name in content.tables:
        if name not in LAYOUTS:
            hint = meant(name, LAYOUTS)
            raise UserError(
                f"sweep {content.name}: field 'tables': unknown layout '{name}'{hint}; known: {', '.join(LAYOUTS)}"
            )


def _print_plan(prepared: Sweep, as_json: bool) -> None:
    from speceval.fitting import Fitting
    from speceval.show import sweeps

    content = sweeps.plan(prepared)
    if as_json:
        options.print_json("sweep", content)
        return
    console = options.output(piped=240)
    console.print(Fitting(sweeps.plan_table(content), "lines", heads=3))
    for line in sweeps.plan_lines(content):
        console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _content(prepared: Sweep, outcomes: list[Outcome]) -> dict[str, Any]:
    """What became of a sweep, for machines."""
    rows = [
        {
            "run": str(outcome.cell.job.directory),
            "cell": outcome.cell.label,
            "status": "failed" if outcome.run is None else outcome.run.meta.status,
            "error": outcome.error,
            "engine": outcome.how,
        }
        for outcome in outcomes
    ]
    return {"sweep": prepared.file.name, "directory": str(prepared.directory), "runs": rows}


def _print_outcomes(prepared: Sweep, outcomes: list[Outcome]) -> None:
    """The tables that the file asks for, then what is wrong, a line each."""
    from rich.text import Text

    from speceval.errors import UserError
    from speceval.show import layouts, render

    console = options.output()
    done = [outcome.cell.job.directory for outcome in outcomes if outcome.ok]
    for layout in prepared.file.tables if done else ():
        try:
            console.print(Text(render.FORMATS["md"](layouts.build(layout, done))), soft_wrap=True)
        except UserError as error:  # of a table alone: what was measured is listed all the same
            console.print(f"no table {layout}: {error}", markup=False, highlight=False, soft_wrap=True)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    for outcome in failed:
        reason = outcome.error or "; ".join(outcome.run.meta.problems if outcome.run else [])
        console.print(f"FAILED {outcome.cell.job.directory}: {reason}", markup=False, highlight=False, soft_wrap=True)
    for line in prepared.left_out:
        console.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{len(outcomes) - len(failed)} of {len(outcomes)} runs in {prepared.directory}: "
        f"speceval table|plot|report {prepared.directory}, speceval show {prepared.directory}/<run>",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
