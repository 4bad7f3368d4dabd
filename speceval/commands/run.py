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


def run(
    ctx: typer.Context,
    target: options.TargetName,
    draft: options.DraftName,
    temp: options.Temperature,
    suite: Annotated[str, typer.Option(help="Suites, comma-separated: names or files (.yaml, .jsonl).")] = "",
    k: options.K = None,
    limit: Annotated[int | None, typer.Option(help="Conversations of each suite.")] = None,
    shuffle_seed: Annotated[int | None, typer.Option(help="Shuffle each suite before --limit.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer [default: the suite's own].")] = None,
    until: Annotated[str, typer.Option(help="Stop when tau is known to this half-width, such as 1%.")] = "",
    against: Annotated[Path | None, typer.Option(help="--until is about the paired difference to this run.")] = None,
    seeds: Annotated[str, typer.Option(help="Samples of each conversation: 0,1,2 or 0-7.")] = "0",
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    drafting: options.Drafting = None,
    draft_truncation: options.DraftTruncation = True,
    rejection: options.Rejection = options.RejectionChoice.standard,
    batch: options.Batch = 32,
    record: Annotated[bool, typer.Option(help="Keep what the verifier saw of every sampled draft.")] = True,
    replay: Annotated[
        Path | None, typer.Option(help="Make the target answer what it answered in this run; only draft anew.")
    ] = None,
    prefix_caching: options.PrefixCaching = False,
    template_arg: Annotated[
        list[str] | None, typer.Option(help="Argument of the chat template, key=value; may be repeated.")
    ] = None,
    baseline: Annotated[bool, typer.Option(help="Also time the target alone: end-to-end speed-up.")] = False,
    baseline_batch: Annotated[str, typer.Option(help="With --baseline: batch sizes, comma-separated.")] = "1",
    engine_arg: options.EngineArg = None,
    trust_remote_code: options.TrustRemoteCode = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the suites' data files.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run [default: results/<name>].")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure a drafter: generate every suite with speculative decoding and print the acceptance lengths.

    The same command resumes an interrupted run, and prints a finished one again.
    """
    from speceval.measure.job import prepare

    asked: dict[str, Any] = {
        "temperature": temp,
        "suites": options.split(suite),
        "limit": limit,
        "shuffle_seed": shuffle_seed,
        "max_tokens": max_tokens,
        "seeds": options.seeds(seeds),
        "top_p": top_p,
        "top_k": top_k,
        "chat_template_kwargs": options.pairs(template_arg, "--template-arg"),
    }
    if replay is not None:
        asked = _of_replayed(ctx, replay, target, draft, asked)
    job = prepare(
        target=target,
        draft=draft,
        suite_names=list(asked.pop("suites")),
        k=k,
        drafting=drafting.value if drafting else None,
        until=options.percent(until, "--until"),
        against=against,
        data_dir=data_dir,
        out=out,
        draft_truncation=draft_truncation,
        rejection=rejection.value,
        batch=batch,
        record=record,
        prefix_caching=prefix_caching,
        engine_args=options.pairs(engine_arg, "--engine-arg"),
        trust_remote_code=trust_remote_code,
        **asked,
    )
    batches = options.seeds(baseline_batch, "--baseline-batch")
    if baseline:
        from speceval.measure import timing

        timing.check(job.suites, batches)  # now, not after the run
    finished = measure(job)
    if baseline:
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


def _of_replayed(ctx: typer.Context, run: Path, target: str, draft: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What the run whose texts are replayed fixes, in place of what was `asked`; `UserError` where they differ."""
    from speceval import catalog
    from speceval.catalog.methods import find
    from speceval.errors import UserError
    from speceval.estimate import books
    from speceval.measure.replay import INHERITED, source
    from speceval.protocol import FLAGS

    if options.given(ctx, "baseline"):
        raise UserError("--baseline: has no meaning with --replay: leave it out")
    stored = books.read(run)
    found, name = source(stored), stored.meta.spec.target
    pair = catalog.resolve(target, draft)
    if pair.draft is not None and find(pair.draft.method).deterministic:
        raise UserError(f"--draft {draft}: drafts in some steps only, which a replay cannot place: run it without")
    if pair.target.name != name:
        raise UserError(f"--target {target}: the texts of {run} are of {name}: name that target, or another run")
    parameters = {"temperature": "temp", "suites": "suite", "chat_template_kwargs": "template_arg"}
    for name in INHERITED:
        differs = (
            list(asked[name] or ()) != list(found[name]) if name in ("suites", "seeds") else asked[name] != found[name]
        )
        if options.given(ctx, parameters.get(name, name)) and differs:
            flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
            raise UserError(f"{flag}: the run that is replayed has {found[name]}: leave it out, or name another run")
    return found


def measure(job: Job) -> StoredRun:
    """Run a prepared job with a progress display on stderr, or read it back when it is complete."""
    from speceval import terminal as shown
    from speceval.measure import launch
    from speceval.measure.job import stored
    from speceval.measure.output import output_to
    from speceval.show import progress as display

    known = stored(job)
    if known is not None and known.complete:
        return known
    # Own copies of the terminal: the engine's output goes to a file meanwhile.
    with os.fdopen(os.dup(2), "w") as terminal:
        console = shown.console(terminal)

        def log(path: Path) -> AbstractContextManager[None]:
            console.print(f"starting vLLM; its log: {path}", soft_wrap=True)
            return output_to(path)

        try:
            return launch.run(job, display.watcher(console), log)
        except KeyboardInterrupt:
            partial = stored(job)
            count = 0 if partial is None else partial.conversations
            line = f"interrupted: {count} conversations are in {job.directory}; the same command resumes"
            console.print(line, soft_wrap=True)
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
