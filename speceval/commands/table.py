"""`speceval table`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options


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
        str, typer.Option("--format", help="How the table is written.", **options.choices(_formats))
    ] = "md",
    over: Annotated[
        str | None, typer.Option(help="Drafter that Δ% is over [default: the architecture's KL drafter].")
    ] = None,
) -> None:
    """Put runs, and what was published for them, into one table."""
    from rich.text import Text

    from speceval.show import layouts, render

    text = render.FORMATS[format_](layouts.build(layout, runs, over))
    if sys.stdout.isatty():
        options.output().print(Text(text), soft_wrap=True, end="")
    else:
        sys.stdout.write(text)
