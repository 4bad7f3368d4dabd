"""`speceval export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options


def _shapes() -> list[str]:
    from speceval.show.export import FORMATS

    return list(FORMATS)


def export(
    run: options.RunDirectory,
    as_: Annotated[str, typer.Option("--as", help="The shape that others read.", **options.choices(_shapes))],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write [default: standard output].")] = None,
) -> None:
    """Export a finished run: a hub page, a speculation profile, or results as lm-evaluation-harness writes them."""
    from speceval.errors import UserError
    from speceval.estimate import books
    from speceval.files import write_whole
    from speceval.show.export import export as exported

    text = exported(books.read(run), as_)
    if out is None:
        sys.stdout.write(text)
        return
    if out.is_dir():
        raise UserError(f"--out {out}: a directory: name a file")
    write_whole(out, text)
