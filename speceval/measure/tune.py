"""What `speceval tune` measures of each drafter and K: acceptance from few answers, step times in short bursts.

Where a drafter's first drafts do not know K, acceptance at every K follows from one replay, at the largest, of the
target's own answers (`estimate.replay.decode_steps`); else each K generates those answers anew. The engine of a K is
then timed at each batch size, in turns with the target alone where that can stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from speceval.catalog.methods import find
from speceval.engines.base import Engine
from speceval.errors import UserError
from speceval.estimate import replay
from speceval.estimate.tuning import ALONE, Burst, Measured, Setting, Tried, accepted
from speceval.measure.beside import Beside, generate, samples_of
from speceval.measure.job import Job
from speceval.measure.kept import Kept
from speceval.measure.output import gone_if_refused
from speceval.measure.start import check_engine
from speceval.measure.timing import Stream
from speceval.store import frames
from speceval.store.layout import Texts

RESULT = "tune.json"
"""In the same folder as the engines' logs."""
FEWEST = 3
"""Bursts of each batch size: below, there is no error to speak of."""
BURST = 16
"""Steps of an engine in a burst: few, so that both of a pair meet the same machine, which others may use too."""
WARM_UP = 64
"""Steps before the first burst of a batch size, in which the batch fills."""
MOST_ANSWERS = 100_000
TOGETHER = ("cpu", "simulated")
"""Devices on which two engines find room side by side without being told how to share it."""


def check(batches: Sequence[int], bursts: int, answers: int) -> None:
    """Raises `UserError` for what cannot be measured."""
    if min(batches, default=0) < 1:
        raise UserError("--batch: batch sizes are whole numbers from 1, such as 1,4,16")
    if bursts < FEWEST:
        raise UserError(f"--bursts {bursts}: at least {FEWEST} of each batch size, for an error")
    if not 2 <= answers <= MOST_ANSWERS:
        raise UserError(f"--answers {answers}: at least 2, for an error, and at most {MOST_ANSWERS:,}")


def measure(
    jobs: Mapping[Setting, Job],
    batches: Sequence[int],
    bursts: int,
    answers: int,
    log: Callable[[Path], AbstractContextManager[None]],
    started: Callable[[Setting], None] = lambda _: None,
    beside: bool | None = None,
) -> Measured:
    """Measure every setting of `jobs`, which have been fetched, and the target of the first alone. Raises `UserError`.

    answers: of the target, that acceptance is told from. beside: whether the target alone stands beside the others all
    the time; None: where there is room without more ado (`TOGETHER`). Otherwise it is timed before and after them.
    `log` takes the engines' output; `started` is told of each setting.
    """
    first = next(iter(jobs.values()))
    first.directory.mkdir(parents=True, exist_ok=True)
    own_log, engine_log, result = (first.directory / name for name in ("alone.log", "engine.log", RESULT))
    started(ALONE)
    found = Measured()
    with (
        gone_if_refused(own_log, result),
        gone_if_refused(engine_log, result),
        closing(Beside(first, own_log)) as alone,
    ):
        found.device = alone.device
        texts = alone.answers(answers)
        together = alone.device in TOGETHER if beside is None else beside
        if not together:
            _visit(found, alone, batches, bursts)
            alone.close()
        with log(engine_log), closing(Kept()) as kept:  # an engine says a last word when it is closed
            for setting in sorted(jobs, key=lambda setting: -setting.k):
                started(setting)
                asked = {s.k: job for s, job in jobs.items() if s.draft == setting.draft}
                found.tried.setdefault(setting, Tried(pd.DataFrame()))
                _accept(found, kept, setting, asked, texts, answers)
                with kept.use(asked[setting.k]) as engine:
                    check_engine(engine, asked[setting.k].spec)
                    found.runner = engine.facts().runner
                    engine.warm_up()
                    for batch in batches:
                        timed = time_bursts(engine, asked[setting.k], batch, bursts, alone if together else None)
                        found.tried[setting].bursts[batch] = timed
    if not together:
        started(ALONE)
        with closing(Beside(first, own_log)) as again:
            _visit(found, again, batches, bursts)
    found.tried = {setting: found.tried[setting] for setting in jobs}
    return found


def nests(job: Job) -> bool:
    """Whether its first drafts and what becomes of them do not depend on K."""
    return find(job.draft.method).nests and job.spec.rejection == "standard"


def _accept(
    found: Measured, kept: Kept, setting: Setting, asked: Mapping[int, Job], texts: Texts, answers: int
) -> None:
    """What the setting accepts; of one that nests, what its drafter does at every K that is asked for."""
    source = found.sources.get(setting.draft)
    job = samples_of(asked[setting.k], answers)
    if source is None and nests(job) and len(asked) > 1:
        try:
            tables, source = replayed(kept, replace(job, texts=texts), asked)
            found.tried |= {Setting(setting.draft, k): Tried(there) for k, there in tables.items()}
        except UserError as error:
            source = {"how": f"a run for each K, since no text can be replayed here: {error}", "tokens": 0, "steps": 0}
    elif source is None:
        source = {"how": "a run for each K", "tokens": 0, "steps": 0}
    found.sources[setting.draft] = source
    if found.tried[setting].accepted.empty:
        turns, steps = frames(_generated(kept, job))
        found.tried[setting].accepted = accepted(turns, steps.groupby("conversation").size())
        cost = _cost("", turns, steps)
        source.update(tokens=source["tokens"] + cost["tokens"], steps=source["steps"] + cost["steps"])


def replayed(kept: Kept, job: Job, ks: Iterable[int]) -> tuple[dict[int, pd.DataFrame], dict[str, Any]]:
    """What the drafter of a job with texts accepts of them at each K up to the job's, and what that cost.

    Raises `UserError` where the engine cannot replay, or what it recorded tells nothing of a free run.
    """
    turns, steps = frames(_generated(kept, job))
    lost, law = replay.unrecorded(steps), replay.text_law(steps)
    if lost or law["agrees"] is False:
        wrong = f"the record of {lost} steps is lost" if lost else f"they have not the target's law (z {law['z']:+.1f})"
        raise UserError(f"the target's answers were replayed, and {wrong}")
    tables = {k: accepted(turns, replay.decode_steps(steps, k)) for k in ks}
    return tables, _cost(f"one replay at K={job.spec.k}", turns, steps)


def _generated(kept: Kept, job: Job) -> list[dict[str, Any]]:
    with kept.use(job) as engine:
        check_engine(engine, job.spec)
        return generate(engine, job)


def _cost(how: str, turns: pd.DataFrame, steps: pd.DataFrame) -> dict[str, Any]:
    return {"how": how, "tokens": int(turns["output_tokens"].sum()), "steps": len(steps)}


def time_bursts(engine: Engine, job: Job, batch: int, bursts: int, alone: Beside | None) -> list[Burst]:
    """Bursts of a batch size, each beside one of the target alone."""
    stream = Stream(engine, job, job.suites[0], batch)
    stream.steps(WARM_UP)
    if alone is None:
        found = [Burst(*stream.steps(BURST)) for _ in range(bursts)]
    else:
        alone.begin(batch)
        alone.steps(WARM_UP)
        found = [_pair(stream, alone, turn=number % 2) for number in range(bursts)]
        alone.drain()
    stream.drain()
    return found


def _pair(stream: Stream, alone: Beside, turn: int) -> Burst:
    if turn:
        theirs, own = alone.steps(BURST), stream.steps(BURST)
    else:
        own, theirs = stream.steps(BURST), alone.steps(BURST)
    return Burst(*own, *theirs)


def _visit(found: Measured, alone: Beside, batches: Sequence[int], bursts: int) -> None:
    """Time the target alone, for itself."""
    for batch in batches:
        alone.begin(batch)
        alone.steps(WARM_UP)
        found.alone.setdefault(batch, []).append([Burst(*alone.steps(BURST)) for _ in range(bursts)])
        alone.drain()
