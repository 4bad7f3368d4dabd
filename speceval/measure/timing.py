"""End-to-end speed-up: tokens per second with speculative decoding over the target's alone, on the same machine.

The LK Losses paper (arXiv 2602.23881) gives the ratio at batch 1. Both engines stand side by side in one process and
take turns, block by block of the same conversations, each going first every other time, so that what slows the machine
down slows both. A block is one conversation at batch 1, else as many as fill the batch twice. Errors: the paired ratio
of two ratios, a block being the unit (`speceval.estimate.speedup`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import platform
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from speceval import engines
from speceval.engines.base import Engine
from speceval.errors import UserError
from speceval.files import write_whole
from speceval.measure import runner
from speceval.measure.job import Job
from speceval.measure.launch import fetch
from speceval.measure.output import output_to
from speceval.measure.start import order, start_engine
from speceval.store import Key
from speceval.store.schema import Machine, Speedup, Timing
from speceval.suites import Conversation, Suite

FEWEST_BLOCKS = 8
"""Of each suite: below, there is no error to speak of."""
MOST_BLOCKS = 64
"""Of each suite: enough for a ratio that is known to a percent or two."""
WARM_UP = 2
"""Conversations that both engines generate before anything is timed."""

Block = tuple[Suite, list[Conversation]]


class _Nowhere:
    """Keeps nothing."""

    done: frozenset[Key] = frozenset()

    def append(self, conversation: dict[str, Any]) -> None:
        """Forget it."""


def measure(job: Job, batches: Sequence[int], log: Path) -> Speedup:
    """Time `job` against its target alone at each batch size; `speedup.summarise` makes ratios of it.

    Works in a process of its own, whose
    output goes to `log`: no other engine shares its memory. Raises `UserError`, also for what `check` refuses.
    """
    check(job.suites, batches)
    result = log.with_name("speedup.json")
    worker = multiprocessing.get_context("spawn").Process(target=_work, args=(job, tuple(batches), log, result))
    worker.start()
    try:
        worker.join()
    finally:
        worker.kill()  # an interrupt: Python would wait for it at its own end
    if not result.exists():
        raise UserError(f"--speedup: timing failed, {log} says why; the run itself is stored")
    timings = [Timing(**timing) for timing in json.loads(result.read_text())]
    result.unlink()
    return Speedup(machine=machine(), batches=list(batches), timings=timings)


def check(suites: Sequence[Suite], batches: Sequence[int]) -> None:
    """Raises `UserError` when a suite cannot be timed at one of the batch sizes."""
    if min(batches, default=0) < 1:
        raise UserError("--speedup-batch: batch sizes are whole numbers from 1, such as 1,32")
    for batch in batches:
        for suite in suites:
            if len(blocks(suite, batch)) < FEWEST_BLOCKS:
                raise UserError(
                    f"--speedup: {suite.name} has {len(suite.conversations)} conversations, too few for "
                    f"{FEWEST_BLOCKS} blocks at batch {batch}: ask for a smaller --speedup-batch"
                )


def _work(job: Job, batches: tuple[int, ...], log: Path, result: Path) -> None:
    with output_to(log):
        timings = list(time_blocks(job, batches))
    write_whole(result, json.dumps([timing.model_dump() for timing in timings]))


def time_blocks(job: Job, batches: Sequence[int]) -> Iterator[Timing]:
    """Run every block on both engines in turns."""
    spec = job.spec.model_copy(update={"record": False, "batch": max(batches), "seeds": job.spec.seeds[:1]})
    job = replace(fetch(replace(job, spec=spec)), texts=None)
    with closing(start_engine(job)) as drafted, closing(engines.open(order(job).alone())) as alone:
        yield from _in_turns(job, {"drafted": drafted, "alone": alone}, batches)


def _in_turns(job: Job, engines: dict[str, Engine], batches: Sequence[int]) -> Iterator[Timing]:
    spec, template = job.spec, runner.Template(job.spec.chat_template_kwargs, job.target.answer_marker)

    def run(name: str, batch: int, suite: Suite, conversations: list[Conversation]) -> tuple[float, int]:
        part = replace(suite, conversations=conversations)
        progress = runner.Progress(len(conversations))
        segment = runner.measure(
            engines[name],
            spec.model_copy(update={"batch": batch}),
            [part],
            template,
            _Nowhere(),
            progress,
            lambda: None,
            ahead=1,
        )
        return segment.seconds, segment.tokens

    for suite in job.suites:
        for name in engines:
            run(name, 1, suite, list(suite.conversations[:WARM_UP]))
    for batch in batches:
        for suite in job.suites:
            for number, conversations in enumerate(blocks(suite, batch)):
                both = {
                    name: run(name, batch, suite, conversations) for name in sorted(engines, reverse=bool(number % 2))
                }
                (drafted_seconds, drafted_tokens), (alone_seconds, alone_tokens) = both["drafted"], both["alone"]
                yield Timing(
                    suite=suite.name,
                    batch=batch,
                    block=number,
                    drafted_seconds=drafted_seconds,
                    drafted_tokens=drafted_tokens,
                    alone_seconds=alone_seconds,
                    alone_tokens=alone_tokens,
                )


def blocks(suite: Suite, batch: int) -> list[list[Conversation]]:
    """The suite's conversations in whole blocks, at most `MOST_BLOCKS`."""
    size = 1 if batch == 1 else 2 * batch
    whole = len(suite.conversations) // size
    parts = [list(suite.conversations[start * size : (start + 1) * size]) for start in range(whole)]
    return parts[:MOST_BLOCKS]


def machine() -> Machine:
    """What must be the same for two speed-ups to be compared; the host's name only as a hash."""
    import os

    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Machine(
        host=hashlib.sha256(platform.node().encode()).hexdigest()[:12],
        processor=platform.machine(),
        cpus=os.cpu_count(),
        gpus=gpus,
    )
