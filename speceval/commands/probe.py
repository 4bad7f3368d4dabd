"""`speceval probe`."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from speceval.commands import options, server_flags


def probe(
    url: Annotated[str, typer.Argument(help="Address of a server, such as http://127.0.0.1:8000.")],
    dialect: Annotated[
        str | None,
        typer.Option(
            help="Kind of server, in place of what it seems to be.", **options.choices(lambda: server_flags.KINDS)
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the served model, if there are several.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the server's key.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Ask a running server what it is and what it tells of its drafts, and say which flag would make it tell more.

    A few tokens are generated on it.
    """
    from speceval.api import probing
    from speceval.show.servers import table

    seen = inspect.unwrap(probing.probe)(url, dialect=dialect, model=model, api_key_env=api_key_env)
    content: dict[str, Any] = seen.as_json()
    if as_json:
        options.print_json("probe", content)
    else:
        options.output().print(table(content))
