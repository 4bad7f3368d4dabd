"""`speceval export`."""

from __future__ import annotations

from typing import Annotated

import typer

from speceval.commands import options


def _shapes() -> list[str]:
    from speceval.show.export import FORMATS

    return list(FORMATS)


def export(
    run: options.RunDirectory,
    as_: Annotated[str, typer.Option("--as", help="The shape that others read.", **options.choices(_shapes))],
    out: options.OutFile = None,
) -> None:
    """Export a finished run: a hub page, a speculation profile, or results as lm-evaluation-harness writes them."""
    from speceval.estimate import books
    from speceval.show.export import export as exported

    options.write(exported(books.read(run), as_), out)
