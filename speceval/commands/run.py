"""`speceval run`, and what every command that measures shares."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speceval.commands import options

if TYPE_CHECKING:
    from speceval.measure.job import Job
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
    from speceval.measure.job import prepare

    replayed = request.pop("replay")
    if replayed is not None:
        request |= _of_replayed(ctx, replayed, request)
    job = prepare(suite_names=list(request.pop("suites")), data_dir=data_dir, out=out, **request)
    batches = options.seeds(speedup_batch, "--speedup-batch")
    if speedup:
        from speceval.measure import timing

        timing.check(job.suites, batches)  # now, not after the run
    finished = measure(job)
    if speedup:
        finished = _with_speedup(job, finished, batches)
    print_run(finished, as_json)


def _with_speedup(job: Job, finished: StoredRun, batches: tuple[int, ...]) -> StoredRun:
    """The finished run with its speed-up, timed now unless it has been."""
    from speceval.measure import timing
    from speceval.store import read_run, write_meta

    if finished.meta.speedup is None or finished.meta.speedup.batches != list(batches):
        timed = timing.measure(job, batches, finished.directory / "speedup.log")
        write_meta(finished.directory, finished.meta.model_copy(update={"speedup": timed}))
        finished = read_run(finished.directory)
    return finished


def _of_replayed(ctx: typer.Context, run: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What the run whose texts are replayed fixes, in place of what was asked for; `UserError` where they differ."""
    from speceval import catalog
    from speceval.catalog.methods import find
    from speceval.errors import UserError
    from speceval.estimate import books
    from speceval.measure.replay import INHERITED, source
    from speceval.protocol import flag

    if options.given(ctx, "speedup"):
        raise UserError("--speedup: has no meaning with --replay: leave it out")
    stored = books.read(run)
    fixed, name = source(stored), stored.meta.spec.target
    target, draft = request["target"], request["draft"]
    pair = catalog.resolve(target, draft)
    if pair.draft is not None and find(pair.draft.method).deterministic:
        raise UserError(f"--draft {draft}: drafts in some steps only, which a replay cannot place: run it without")
    if pair.target.name != name:
        raise UserError(f"--target {target}: the texts of {run} are of {name}: name that target, or another run")
    for field in INHERITED:
        if options.given(ctx, field) and not _same(request[field], fixed[field]):
            raise UserError(
                f"{flag(field).name}: the run that is replayed has {fixed[field]}: leave it out, or name another run"
            )
    return fixed


def _same(one: Any, other: Any) -> bool:
    return list(one) == list(other) if isinstance(one, list | tuple) else one == other


def measure(job: Job) -> StoredRun:
    """Run a prepared job with a progress display on stderr, or read it back when it is complete."""
    from rich.console import Console

    from speceval.measure import launch
    from speceval.measure.job import stored
    from speceval.measure.output import output_to
    from speceval.show import progress as display

    known = stored(job)
    if known is not None and known.complete:
        return known
    # Own copies of the terminal: the engine's output goes to a file meanwhile.
    with os.fdopen(os.dup(2), "w") as terminal:
        console = Console(file=terminal)

        def log(path: Path) -> AbstractContextManager[None]:
            console.print(f"starting vLLM; its log: {path}", markup=False, soft_wrap=True)
            return output_to(path)

        try:
            return launch.run(job, display.watcher(console), log)
        except KeyboardInterrupt:
            partial = stored(job)
            count = 0 if partial is None else partial.conversations
            console.print(f"interrupted: {count} conversations are in {job.directory}; the same command resumes")
            raise


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
