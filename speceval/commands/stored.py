"""`speceval show` and `speceval ls`: what is there already."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options
from speceval.commands.run import print_run


RESULTS = Path("results")
"""Where runs are, unless told otherwise; need not be there yet."""


class Listing(StrEnum):
    """What `speceval ls` can list."""

    targets = "targets"
    drafters = "drafters"
    suites = "suites"
    patches = "patches"
    runs = "runs"


def show(
    run: options.RunDirectory,
    as_json: options.AsJson = False,
) -> None:
    """Print a stored run again, finished or not."""
    from speceval.store import read_run

    print_run(read_run(run), as_json)


def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.")],
    root: Annotated[Path, typer.Option(help="Where runs are looked for.")] = RESULTS,
    as_json: options.AsJson = False,
) -> None:
    """List the catalog, the suites, the vLLM patches or the stored runs."""
    from speceval.errors import UserError
    from speceval.show import listings

    if what is Listing.runs and not root.is_dir() and root != RESULTS:
        raise UserError(f"--root {root}: no such directory")
    if as_json:
        options.print_json("ls", {"what": what.value, "rows": listings.rows(what.value, root)})
    else:
        options.output().print(listings.show(what.value, root))
