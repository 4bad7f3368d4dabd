"""`speceval serve`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from speceval.commands import options
from speceval.errors import UserError

FIELDS = (
    *("target", "draft", "k", "temperature", "drafting", "draft_truncation", "rejection", "batch", "runner"),
    *("method", "draft_args", "engine_args", "trust_remote_code"),
)
"""Of `RunSpec`: what a server is fixed to when it starts."""


@options.of_spec(*FIELDS, temperature=1.0)
def serve(
    ctx: typer.Context,
    request: dict[str, Any],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Name of the served model [default: the target's].")] = None,
    log: Annotated[Path | None, typer.Option(help="File for its output [default: results/serve/<name>.log].")] = None,
) -> None:
    """Start vLLM's own server so that it tells each verify step, and print the command that measures it.

    Ctrl-C or SIGTERM stops it.
    """
    from speceval.api.serving import reachable_by_others, start
    from speceval.measure.output import terminal
    from speceval.measure.starting import Starting

    if reachable_by_others(host):
        print(f"warning: --host {host}: whoever reaches this port can change what the server does", file=sys.stderr)
    with terminal() as console:
        display = Starting(console, "vLLM's server")

        def starting(path: Path) -> None:
            console.print(f"starting vLLM's server; its log: {path}", markup=False, soft_wrap=True)
            display.begin(path)

        try:
            with start(request, host, port, name, log, starting) as serving:
                display.over()
                print(f"{serving.url} serves {serving.name}; Ctrl-C stops it; measure it with", flush=True)
                print(f"  {serving.command()}", flush=True)
                try:
                    while serving.server.running:
                        time.sleep(0.5)
                except KeyboardInterrupt:
                    console.print("stopping")
                else:
                    raise UserError(f"vLLM's server has ended: {serving.server.reason(1)}")
        finally:
            display.over()
