"""`speceval report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speceval import terminal


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs, or folders of runs; the others are held against the first.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    verify: Annotated[
        Path | None,
        typer.Option(help="The verify.json that speaks for the runs [default: looked for in results/verify]."),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Field of the fingerprint that may differ; may be repeated.")
    ] = None,
) -> None:
    """Write one self-contained page about runs: verdict, tables, figures, audits, coloured outputs, protocol."""
    from speceval.errors import UserError
    from speceval.estimate import books
    from speceval.show.report import write
    from speceval.store import directories

    if out.is_dir():
        raise UserError(f"--out {out}: a directory: name the page, such as {out / 'report.html'}")
    write([books.read(run) for path in runs for run in directories(path) or [path]], out, verify, allow or ())
    terminal.wrote(out)
