"""`speceval run`, and how a run is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speceval.commands import options

if TYPE_CHECKING:
    from speceval.store import StoredRun


@options.of_spec()
def run(
    ctx: typer.Context,
    request: dict[str, Any],
    speedup: Annotated[bool, typer.Option(help="Also time the target alone: end-to-end speed-up.")] = False,
    speedup_batch: Annotated[str, typer.Option(help="With --speedup: batch sizes, comma-separated.")] = "1",
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the suites' data files.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run [default: results/<name>].")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure a drafter: generate every suite with speculative decoding and print the acceptance lengths.

    The same command resumes an interrupted run, and prints a finished one again.
    """
    from speceval.api.measuring import measure, with_speedup
    from speceval.measure.job import prepare

    replayed = request.pop("replay")
    if replayed is not None:
        request |= _of_replayed(ctx, replayed, request)
    job = prepare(suite_names=list(request.pop("suites")), data_dir=data_dir, out=out, **request)
    batches = options.seeds(speedup_batch, "--speedup-batch")
    if speedup:
        from speceval.measure import timing

        timing.check(job.suites, batches)  # now, not after the run
    finished = measure(job, progress=True)
    if speedup:
        finished = with_speedup(job, finished, batches)
    print_run(finished, as_json)


def _of_replayed(ctx: typer.Context, run: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What the run whose texts are replayed fixes, in place of what was asked for; `UserError` where they differ."""
    from speceval.errors import UserError
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
