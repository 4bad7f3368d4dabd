"""From a user's request to a finished run: resolve names, start the engine, check it, measure, check the books."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

from speceval import catalog, engines
from speceval.engines.base import Engine
from speceval.errors import UserError
from speceval.estimate import books
from speceval.measure import effect, runner, until
from speceval.measure.fingerprint import environment, make_fingerprint
from speceval.measure.job import Job
from speceval.measure.output import Watch
from speceval.measure.start import check_engine, start_engine
from speceval.measure.stretch import account_for
from speceval.private import masked
from speceval.store import Store, StoredRun, read_run
from speceval.store.schema import RunMeta, Segment, differences

FORCED = "the acceptance was forced (rejection_sample_method=synthetic): tau is what was put in, no measurement"
"""Problem of every run with forced rates: whatever shows a run shows it."""


def own_engine(job: Job) -> AbstractContextManager[Engine]:
    """An engine for one job alone."""
    return closing(start_engine(job))


def run(
    job: Job,
    watch: Watch,
    log: Callable[[Path], AbstractContextManager[None]],
    engine_for: Callable[[Job], AbstractContextManager[Engine]] = own_engine,
) -> StoredRun:
    """Measure what the store does not hold yet and return the finished run.

    `watch` shows progress; `log` sends the engine's own output to a file while its context is open; `engine_for` gives
    the engine while its context is open.
    Raises `UserError`; an interrupt or a kill leaves a store that the same call resumes.
    """
    job = fetch(job)
    with (
        Store(job.directory) as store,
        log(job.directory / "engine.log"),
        engine_for(job) as engine,
    ):
        check_engine(engine, job.spec)
        template = runner.Template(job.spec.chat_template_kwargs, job.target.answer_marker)
        notes = [note for suite in job.suites for note in suite.notes]
        notes += effect.check(
            engine.tokenizer, job.suites, template.kwargs, job.target.chat_template_kwargs, job.target.name
        )
        if job.spec.shard is not None:
            notes.append(f"shard {job.spec.shard} of the conversations: `speceval merge` joins them")
        meta = _open_meta(store, job, engine, template, notes + engine.notes())
        engine.warm_up()
        planned = len(runner.plan(job.suites, job.spec))
        progress = runner.Progress(planned, done=len(store.done), counts=store.counts)
        goal = until.goal(job.spec, job.suites, job.against)
        looks = None if goal is None else until.Looks(goal, store)
        ahead = runner.QUEUE_AHEAD if looks is None else until.AHEAD
        earlier = meta.segments

        def keep(segment: Segment) -> None:
            meta.segments = [*earlier, segment]
            store.write_meta(meta)

        with watch(progress, job.spec) as changed:
            runner.measure(
                engine, job.spec, job.suites, template, store, progress, changed, job.texts, ahead, looks, keep
            )
        turns, steps = store.frames()
        if others := engine.foreign():
            _set_totals_aside(meta, others)
        meta.problems += books.check(turns, steps, job.spec, meta.segments, list(store.counts), meta.evidence)
        if job.forced is not None:
            meta.problems.append(FORCED)
        if store.cut_thoughts:
            meta.notes.append(
                f"{store.cut_thoughts} of {store.followed} follow-up turns come after a thought that was cut at "
                "max_tokens: as with a server, nothing of it is in their prompts"
            )
        meta.status = "inconsistent" if meta.problems else "complete"
        meta.finished = _now()
        if goal is not None:
            meta.stopping = until.report(goal, turns)
        counted = None if goal is None or meta.stopping is None else until.counted(goal, meta.stopping)
        store.finish(meta, counted)
    return read_run(job.directory)


def _set_totals_aside(meta: RunMeta, others: str) -> None:
    """Of the last stretch, which hold what others asked; where there is nothing else that is a problem of the run."""
    if meta.evidence == "totals":
        meta.problems.append(others)
        return
    meta.notes.append(others)
    meta.segments[-1] = meta.segments[-1].model_copy(update={"counters": None})


def fetch(job: Job) -> Job:
    """The job with its checkpoints at hand (`catalog.fetch`) and K within their limits, if its engine loads them.

    Raises `UserError`, also where the engine cannot run: before anything is fetched.
    """
    engine = engines.find(job.spec.engine)
    engine.require()
    if not engine.loads_checkpoints:
        return job
    pair = catalog.fetch(catalog.Pair(target=job.target, draft=job.draft))
    assert pair.draft is not None
    catalog.check_k(pair.draft, job.spec.k)
    return replace(job, target=pair.target, draft=pair.draft)


def _open_meta(store: Store, job: Job, engine: Engine, template: runner.Template, notes: list[str]) -> RunMeta:
    """run.json's content: a new run's, or the stored one's after a check that nothing changed under it."""
    fingerprint = make_fingerprint(job, engine, template)
    if job.against is not None:
        until.check_against(job.against, fingerprint)
    meta = store.read_meta()
    if meta is not None:
        changes = differences(meta.fingerprint, fingerprint)
        if changes:
            raise UserError(
                f"{job.directory}: cannot resume, something that moves tau changed since the run began "
                f"({'; '.join(changes)}): undo that, or name another --out"
            )
        meta.segments = account_for(meta.segments, len(store.done))
        meta.notes = notes
        return meta
    meta = RunMeta(
        name=job.spec.name,
        status="running",
        created=_now(),
        command=[
            masked(part.encode(errors="backslashreplace").decode())
            for part in job.command or ("speceval", *sys.argv[1:])
        ],
        spec=job.spec,
        fingerprint=fingerprint,
        fingerprint_hash=fingerprint.hash,
        conversations=len(runner.plan(job.suites, job.spec)),
        environment=environment(job.spec.engine),
        patches=engine.patches(),
        segments=[],
        problems=[],
        evidence=engine.evidence,
        notes=notes,
        groups={suite.name: suite.groups for suite in job.suites if suite.groups},
    )
    store.write_meta(meta)
    return meta


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
