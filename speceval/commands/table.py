"""`speceval table`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options

ENDINGS = {".csv": "csv", ".tex": "latex", ".html": "html", ".json": "json"}
"""Of a file -> how it is written, if nothing else is said."""


def _layouts() -> list[str]:
    from speceval.show.layouts import LAYOUTS

    return list(LAYOUTS)


def _formats() -> list[str]:
    from speceval.show.render import FORMATS

    return list(FORMATS)


def table(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs, folders of runs; `published`: the paper's figures.")
    ],
    layout: Annotated[str, typer.Option(help="What is in rows and columns.", **options.choices(_layouts))] = "summary",
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="How the table is written [default: drawn, in a pipe md].", **options.choices(_formats)
        ),
    ] = None,
    over: Annotated[
        str | None, typer.Option(help="Drafter that Δ% is over [default: the architecture's KL drafter].")
    ] = None,
    out: options.OutFile = None,
) -> None:
    """Put runs, and what was published for them, into one table."""
    from speceval.show import layouts, render

    built = layouts.build(layout, runs, over)
    if out is not None:
        format_ = format_ or ENDINGS.get(out.suffix.lower(), "md")
    if format_ is None and sys.stdout.isatty():
        options.output().print(render.terminal(built))
    else:
        options.write(render.FORMATS[format_ or "md"](built), out)
