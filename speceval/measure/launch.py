"""From a user's request to a finished run: resolve names, start the engine, check it, measure, check the books."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

from speceval import catalog, engines
from speceval.engines.base import Engine
from speceval.measure import record, runner, until
from speceval.measure.job import Job
from speceval.measure.output import Watch, gone_if_refused
from speceval.measure.start import start_engine
from speceval.store import RUN, Store, StoredRun, read_run
from speceval.store.schema import Segment


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
        gone_if_refused(job.directory / "engine.log", job.directory / RUN),
        engine_for(job) as engine,
    ):
        meta = record.opened(store, job, record.ask(engine, job))
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

        template = record.template(job)
        with watch(progress, job.spec) as changed:
            runner.measure(
                engine, job.spec, job.suites, template, store, progress, changed, job.texts, ahead, looks, keep
            )
        record.closed(store, job, meta, goal, engine)
    return read_run(job.directory)


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
