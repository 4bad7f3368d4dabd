"""`speceval run`, and how a run is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speceval.commands import options, server_flags
from speceval.errors import UserError

if TYPE_CHECKING:
    from speceval.store import StoredRun


@options.of_spec()
def run(
    ctx: typer.Context,
    request: dict[str, Any],
    speedup: Annotated[bool, typer.Option(help="Also time the target alone: end-to-end speed-up.")] = False,
    speedup_batch: Annotated[str, typer.Option(help="With --speedup: batch sizes, comma-separated.")] = "1",
    url: Annotated[
        str | None,
        typer.Option(help="Measure the server that runs here, or several, comma-separated; no engine is started."),
    ] = None,
    api_key_env: server_flags.ApiKeyEnv = None,
    dialect: server_flags.Dialect = None,
    through_server: Annotated[
        bool, typer.Option("--through-server", help="Start vLLM's own server, measure it over HTTP, stop it.")
    ] = False,
    ray: options.Ray = None,
    replicas: options.Replicas = None,
    gpus_per_replica: options.GpusPerReplica = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the suites' data files.")] = None,
    out: options.OutDirectory = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure a drafter: generate every suite with speculative decoding and print the acceptance lengths.

    The same command resumes an interrupted run, and prints a finished one again.
    """
    from speceval.api.measuring import cluster, measure, with_speedup
    from speceval.measure.job import prepare

    on = cluster(ray, replicas, gpus_per_replica, speedup)
    if url is not None and options.given(ctx, "speedup"):
        raise UserError("--speedup: a running server cannot be timed without its drafter: leave it out")
    request |= server_flags.engine(ctx, url, {"api_key_env": api_key_env, "dialect": dialect}, request)
    if through_server:
        request["engine"] = _own_server(ctx, url, request["engine"])
    replayed = request.pop("replay")
    if replayed is not None:
        request |= _of_replayed(ctx, replayed, request)
    job = prepare(suite_names=list(request.pop("suites")), data_dir=data_dir, out=out, **request)
    if options.given(ctx, "speedup_batch") and not speedup:
        raise UserError("--speedup-batch: has no meaning without --speedup")
    batches = options.seeds(speedup_batch, "--speedup-batch")
    if speedup:
        from speceval.measure import timing

        timing.check(job.suites, batches)  # now, not after the run
    finished = measure(job, progress=True, on=on)
    if speedup:
        finished = with_speedup(job, finished, batches, progress=True)
    print_run(finished, as_json)


def _own_server(ctx: typer.Context, url: str | None, engine: str) -> str:
    """The engine that --through-server asks for."""
    if url is not None:
        raise UserError("--through-server: starts a server of its own: leave out --url, or this")
    if options.given(ctx, "engine") and engine not in ("vllm", "own-server"):
        raise UserError(f"--engine {engine}: --through-server measures vLLM: leave one out")
    if options.given(ctx, "speedup"):
        raise UserError("--speedup: is timed without a server: leave out --through-server")
    return "own-server"


def _of_replayed(ctx: typer.Context, run: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What the run whose texts are replayed fixes, in place of what was asked for; `UserError` where they differ."""
    from speceval.measure.replay import INHERITED, inherited

    if options.given(ctx, "speedup"):
        raise UserError("--speedup: has no meaning with --replay: leave it out")
    given = {name: request[name] for name in INHERITED if options.given(ctx, name)}
    return inherited(run, request["target"], request["draft"], given, request["method"])


def print_run(stored: StoredRun, as_json: bool) -> None:
    """Print a stored run: its tables, or one JSON object. Exits with 1 if there is anything wrong with it."""
    from speceval.show import tables

    content = tables.run_json(stored)
    if as_json:
        options.print_json("run", content)
    else:
        options.output().print(tables.run_tables(stored, content))
    if content["problems"]:
        raise typer.Exit(1)
