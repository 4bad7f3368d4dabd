"""`speceval compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options


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
    from speceval.api.results import Comparison
    from speceval.estimate import books
    from speceval.estimate.comparison import compare_runs, led_by

    stored = [books.read(run) for run in runs]
    options.show(Comparison(compare_runs(stored if over is None else led_by(stored, over), allow or ())), as_json)
