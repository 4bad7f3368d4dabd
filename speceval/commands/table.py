"""`speceval table`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options


class Layout(StrEnum):
    """What a table shows: the functions of `speceval.show.layouts`."""

    summary = "summary"
    paper_main = "paper-main"
    paper_arch = "paper-arch"
    paper_mean = "paper-mean"
    positions = "positions"
    categories = "categories"


class Format(StrEnum):
    """How a table is written: the functions of `speceval.show.render`."""

    md = "md"
    csv = "csv"
    latex = "latex"
    html = "html"
    json = "json"


def table(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs, folders of runs; `published`: the paper's figures.")
    ],
    layout: Annotated[Layout, typer.Option(help="What is in rows and columns.")] = Layout.summary,
    format_: Annotated[Format, typer.Option("--format", help="How the table is written.")] = Format.md,
    baseline: Annotated[
        str | None, typer.Option(help="Drafter that Δ% is over [default: the architecture's KL drafter].")
    ] = None,
) -> None:
    """Put runs, and what was published for them, into one table."""
    from rich.text import Text

    from speceval.show import layouts, render

    text = render.FORMATS[format_.value](layouts.build(layout.value, runs, baseline))
    if sys.stdout.isatty():
        options.output().print(Text(text), soft_wrap=True, end="")
    else:
        sys.stdout.write(text)
