"""--url and its like: a running server in place of an engine that is started."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from speceval.commands import options
from speceval.errors import UserError
from speceval.private import secret_in

KINDS = ("vllm", "sglang", "llamacpp", "openai")
"""What --dialect takes."""
ApiKeyEnv = Annotated[str | None, typer.Option(help="With --url: environment variable that holds the server's key.")]
Dialect = Annotated[
    str | None,
    typer.Option(help="With --url: kind of server, in place of what it seems to be.", **options.choices(lambda: KINDS)),
]


def engine(ctx: typer.Context, url: str | None, more: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """What --url changes in a request: the same as `--engine server --engine-arg url=…`. `more`: its other flags."""
    more = {name: value for name, value in more.items() if value is not None}
    if url is None:
        if more:
            raise UserError(f"--{min(more).replace('_', '-')}: has no meaning without --url")
        return {}
    if secret_in(url) is not None:
        raise UserError("--url: holds a secret, which would be stored with the run: leave it out, see --api-key-env")
    if "engine" in request and options.given(ctx, "engine") and request["engine"] != "server":
        raise UserError(f"--engine {request['engine']}: is not what answers at --url: leave it out")
    return {"engine": "server", "engine_args": {**(request["engine_args"] or {}), "url": url, **more}}
