"""Timed bursts: each drafter and K at each batch size, on an engine that goes from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from speceval import engines
from speceval.engines.base import Engine
from speceval.errors import UserError
from speceval.estimate.tuning import Bursts, Setting
from speceval.measure import runner
from speceval.measure.job import Job
from speceval.measure.kept import Kept
from speceval.measure.start import check_engine, order
from speceval.measure.stretch import Memory
from speceval.store import frames

ALONE = Setting("none", 0)
SAMPLE = "\x1e"
"""Between a conversation's id and the number of its sample, while bursts are generated."""
FEWEST = 3
"""Bursts of each batch size: below, there is no error to speak of."""


def check(batches: Sequence[int], bursts: int) -> None:
    """Raises `UserError` for what cannot be timed."""
    if min(batches, default=0) < 1:
        raise UserError("--batch: batch sizes are whole numbers from 1, such as 1,4,16")
    if bursts < FEWEST:
        raise UserError(f"--bursts {bursts}: at least {FEWEST} of each batch size, for an error")


def measure(
    jobs: dict[Setting, Job],
    batches: Sequence[int],
    bursts: int,
    log: Callable[[Path], AbstractContextManager[None]],
    started: Callable[[Setting], None] = lambda _: None,
) -> dict[Setting, Bursts]:
    """Time every setting of `jobs`, which have been fetched, and the target of the first alone. Raises `UserError`.

    A burst generates twice as many conversations as the batch holds, so that it is full most of the time; bursts of
    the batch sizes take turns. `log` takes the engine's output; `started` is told of each setting.
    """
    found: dict[Setting, Bursts] = {}
    first = next(iter(jobs.values()))
    first.directory.mkdir(parents=True, exist_ok=True)
    with closing(Kept()) as kept, log(first.directory / "engine.log"):
        for setting, job in jobs.items():
            started(setting)
            with kept.use(job) as engine:
                check_engine(engine, job.spec)
                found[setting] = _bursts(engine, job, batches, bursts)
        kept.close()
        started(ALONE)
        with closing(engines.open(order(first).alone())) as engine:
            found[ALONE] = _bursts(engine, first, batches, bursts)
    return found


def _bursts(engine: Engine, job: Job, batches: Sequence[int], bursts: int) -> Bursts:
    template = runner.Template(job.spec.chat_template_kwargs, job.target.answer_marker)
    result = Bursts({batch: [] for batch in batches}, {batch: [] for batch in batches})
    engine.warm_up()
    for number in range(-1, bursts):  # the first of each batch size is not counted
        for batch in batches:
            seconds, lines = _burst(engine, job, template, batch, max(number, 0))
            if number < 0:
                continue
            turns, steps = (_sampled(table, batches.index(batch), len(batches)) for table in frames(lines))
            result.seconds[batch].append(seconds)
            result.steps[batch].append(len(steps))
            result.turns.append(turns)
            result.tables.append(steps)
    return result


def _burst(
    engine: Engine, job: Job, template: runner.Template, batch: int, number: int
) -> tuple[float, list[dict[str, Any]]]:
    """Seconds and conversations of one burst: the suite's next ones, which begin again once they are through."""
    suite, size = job.suites[0], 2 * batch
    count = len(suite.conversations)
    conversations = [
        replace(
            suite.conversations[place % count], id=f"{suite.conversations[place % count].id}{SAMPLE}{place // count}"
        )
        for place in range(number * size, (number + 1) * size)
    ]
    memory = Memory()
    spec = job.spec.model_copy(update={"batch": batch, "seeds": job.spec.seeds[:1]})
    part = replace(suite, conversations=conversations)
    progress = runner.Progress(size)
    segment = runner.measure(engine, spec, [part], template, memory, progress, lambda: None, ahead=1)
    return segment.seconds, memory.lines


def _sampled(table: pd.DataFrame, batch: int, batches: int) -> pd.DataFrame:
    """A table in which samples of one conversation, of any burst, differ in their seed alone."""
    parts = table["conversation"].str.rsplit(SAMPLE, n=1, expand=True)
    return table.assign(conversation=parts[0], seed=parts[1].astype("int64") * batches + batch)
