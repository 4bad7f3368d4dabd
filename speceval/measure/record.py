"""The record of a run: opened when an engine has told what it is, closed when every conversation is in."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Collection
from dataclasses import dataclass

from speceval.engines.base import Engine
from speceval.errors import UserError
from speceval.estimate import books
from speceval.measure import effect, runner, thoughts, until
from speceval.measure.fingerprint import environment, make_fingerprint
from speceval.measure.job import Job
from speceval.measure.replay import require_law
from speceval.measure.start import check_engine
from speceval.measure.stretch import account_for
from speceval.private import masked
from speceval.store import Store
from speceval.store.schema import Environment, Fingerprint, PatchState, RunMeta, differences

FORCED = "the acceptance was forced (rejection_sample_method=synthetic): tau is what was put in, no measurement"
"""Problem of every run with forced rates: whatever shows a run shows it."""


@dataclass(frozen=True)
class Told:
    """What an engine says of itself before it measures: plain data, which may come from another machine."""

    fingerprint: Fingerprint
    environment: Environment
    patches: list[PatchState]
    notes: list[str]
    """What a reader must know."""


def template(job: Job) -> runner.Template:
    """How the job's target reads a conversation."""
    return runner.Template(job.spec.chat_template_kwargs, job.target.answer_marker)


def ask(engine: Engine, job: Job) -> Told:
    """What an engine says of itself. Raises `UserError` where it will not measure what `job` asks for."""
    check_engine(engine, job.spec)
    rendered = template(job)
    notes = [note for suite in job.suites for note in suite.notes]
    notes += effect.check(
        engine.tokenizer, job.suites, rendered.kwargs, job.target.chat_template_kwargs, job.target.name
    )
    notes += thoughts.notes(engine, rendered.answer_marker, rendered.kwargs)
    if job.spec.shard is not None:
        notes.append(f"shard {job.spec.shard} of the conversations: `speceval merge` joins them")
    return Told(
        make_fingerprint(job, engine, rendered),
        environment(job.spec.engine),
        engine.patches(),
        notes + engine.notes(),
    )


def opened(store: Store, job: Job, told: Told) -> RunMeta:
    """run.json's content: a new run's, or the stored one's after a check that nothing changed under it."""
    if job.against is not None:
        until.check_against(job.against, told.fingerprint)
    if job.source is not None:
        require_law(job.source, told.fingerprint)
    meta = store.read_meta()
    if meta is not None:
        changes = differences(meta.fingerprint, told.fingerprint)
        if changes:
            raise UserError(
                f"{job.directory}: cannot resume, something that moves tau changed since the run began "
                f"({'; '.join(changes)}): undo that, or name another --out"
            )
        meta.segments = account_for(meta.segments, len(store.done), store.numbered)
        meta.notes = told.notes
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
        fingerprint=told.fingerprint,
        fingerprint_hash=told.fingerprint.hash,
        conversations=len(runner.plan(job.suites, job.spec)),
        environment=told.environment,
        patches=told.patches,
        segments=[],
        problems=[],
        notes=told.notes,
        groups={suite.name: suite.groups for suite in job.suites if suite.groups},
    )
    store.write_meta(meta)
    return meta


def closed(store: Store, job: Job, meta: RunMeta, goal: until.Goal | None, engine: Engine | None = None) -> None:
    """Check the books of a run whose conversations are all in, and make its tables.

    `goal`: of `--until`; `engine`: has what it alone knows; None: replicas measured it.
    """
    turns, steps = store.frames()
    if engine is not None:
        meta.notes += engine.losses()
        meta.problems += engine.unbalanced()
        if foreign := engine.foreign():
            _set_totals_aside(meta, foreign)
    meta.problems += books.check(turns, steps, job.spec, meta.segments, store.order(), meta.evidence)
    if job.forced is not None:
        meta.problems.append(FORCED)
    if store.cut_thoughts:
        meta.notes.append(
            f"{store.cut_thoughts} of {store.followed} follow-up turns come after a thought that was cut at "
            "max_tokens: as with a server, nothing of it is in their prompts"
        )
    meta.status = "inconsistent" if meta.problems else "complete"
    meta.finished = _now()
    counted: Collection[tuple[str, str, int]] | None = None
    if goal is not None:
        meta.stopping = until.report(goal, turns)
        counted = until.counted(goal, meta.stopping)
    store.finish(meta, counted)


def _set_totals_aside(meta: RunMeta, others: str) -> None:
    """Of the last stretch, which hold what others asked; where there is nothing else that is a problem of the run."""
    if meta.evidence == "totals":
        meta.problems.append(others)
        return
    meta.notes.append(others)
    meta.segments[-1] = meta.segments[-1].model_copy(update={"counters": None})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
