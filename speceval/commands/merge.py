"""`speceval merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from speceval.commands import options
from speceval.commands.run import print_run


def merge(
    shards: Annotated[list[Path], typer.Argument(metavar="RUN...", help="All shards of a run: run --shard i/n.")],
    out: options.OutDirectory = None,
    as_json: options.AsJson = False,
) -> None:
    """Join the shards of a run, measured by themselves, into the run that one engine would have given."""
    from speceval.measure.merge import merge as joined

    print_run(joined(shards, out, ["speceval", *sys.argv[1:]]), as_json)
