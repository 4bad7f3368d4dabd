"""`speceval compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speceval.commands import options
from speceval.errors import UserError

if TYPE_CHECKING:
    from speceval.store import StoredRun


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Directories of runs; the others are compared with the first."),
    ],
    allow: Annotated[
        list[str] | None, typer.Option(help="Field of the protocol that may differ; may be repeated.")
    ] = None,
    over: Annotated[
        str | None, typer.Option(help="Drafter whose run the others are compared with [default: the first run's].")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare runs with the first one, paired by conversation and seed.

    Runs whose protocols differ in more than the drafter are refused with exit code 3.
    """
    from speceval.estimate import books
    from speceval.estimate.comparison import compare_runs

    stored = [books.read(run) for run in runs]
    comparison = compare_runs(stored if over is None else _first(stored, over), allow or ())
    if as_json:
        options.print_json("compare", comparison)
    else:
        from speceval.show.comparison import comparison_tables

        options.output().print(comparison_tables(comparison))


def _first(runs: list[StoredRun], drafter: str) -> list[StoredRun]:
    """The drafter's run, then the others. Raises `UserError` unless there is one."""
    named = [run for run in runs if run.meta.spec.draft == drafter]
    if len(named) != 1:
        drafters = ", ".join(dict.fromkeys(run.meta.spec.draft for run in runs))
        raise UserError(f"--over {drafter}: {len(named) or 'no'} runs are of that drafter, one is needed: {drafters}")
    return [*named, *(run for run in runs if run is not named[0])]
