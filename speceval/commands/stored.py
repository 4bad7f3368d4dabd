"""`speceval show` and `speceval ls`: what is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speceval import terminal
from speceval.commands import options
from speceval.commands.run import print_run

RESULTS = Path("results")
"""Where runs are, unless told otherwise; need not be there yet."""


def _listings() -> list[str]:
    from speceval.show.listings import LISTINGS

    return list(LISTINGS)


def show(
    run: options.RunDirectory,
    as_json: options.AsJson = False,
) -> None:
    """Print a stored run again, finished or not."""
    from speceval.store import read_run

    print_run(read_run(run), as_json)


def list_(
    what: Annotated[str, typer.Argument(help="What to list.", **options.choices(_listings))],
    root: Annotated[Path, typer.Option(help="Where runs are looked for.")] = RESULTS,
    as_json: options.AsJson = False,
) -> None:
    """List the catalog, the suites, the vLLM patches or the stored runs."""
    from speceval.errors import UserError
    from speceval.show import listings

    if what == "runs" and not root.is_dir() and root != RESULTS:
        raise UserError(f"--root {root}: no such directory")
    if as_json:
        options.print_json("ls", {"what": what, "rows": listings.rows(what, root)})
    else:
        options.output(piped=terminal.UNCUT).print(listings.show(what, root))
