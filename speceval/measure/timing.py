"""End-to-end speed-up: tokens per second with speculative decoding over the target's alone, on the same machine.

The LK Losses paper (arXiv 2602.23881) gives the ratio at batch 1. Both engines stand side by side in one process and
take turns, block by block, each going first every other time, so that what slows the machine down slows both. A block
is the time in which as many conversations end as are in flight; the engine that waits keeps its own in flight, so that
the batch is full whenever it is timed. Errors: the paired ratio of two ratios, a block being the unit
(`speceval.estimate.speedup`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import platform
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from speceval import engines
from speceval.engines.base import Engine
from speceval.errors import UserError
from speceval.files import write_whole
from speceval.measure import runner, thoughts
from speceval.measure.job import Job
from speceval.measure.launch import fetch
from speceval.measure.output import output_to
from speceval.measure.start import order, start_engine
from speceval.store.schema import Machine, Speedup, Timing
from speceval.suites import Conversation, Suite

FEWEST_BLOCKS = 8
"""Of each suite: below, there is no error to speak of. A suite has at least as many conversations."""
MOST_BLOCKS = 64
"""Of each suite: enough for a ratio that is known to a percent or two."""
WARM_UP = 2
"""Conversations at least that both engines end before anything is timed: as many as fill the batch."""


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
            least = max(batch, FEWEST_BLOCKS)
            if len(suite.conversations) < least:
                raise UserError(
                    f"--speedup: {suite.name} has {len(suite.conversations)} conversations, at batch {batch} at least "
                    f"{least} are needed: ask for a smaller --speedup-batch, or more conversations"
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
        for batch in batches:
            for suite in job.suites:
                yield from _in_turns(job, {"drafted": drafted, "alone": alone}, suite, batch)


def _in_turns(job: Job, engines: dict[str, Engine], suite: Suite, batch: int) -> Iterator[Timing]:
    """The blocks of a suite at one batch size: as many conversations ended as are in flight, on one engine, then on
    the other. Whichever waits keeps its own in flight, so that the batch is full whenever it is timed.
    """
    streams = {name: Stream(engine, job, suite, batch) for name, engine in engines.items()}
    for stream in streams.values():
        stream.run(max(batch, WARM_UP))
    for number in range(blocks(suite, batch)):
        turn = {name: streams[name].run(batch) for name in sorted(streams, reverse=bool(number % 2))}
        told = {f"{name}_{key}": value for name, part in turn.items() for key, value in part.items()}
        yield Timing.model_validate({"suite": suite.name, "batch": batch, "block": number, **told})
    for stream in streams.values():
        stream.drain()


class Stream:
    """A suite's conversations on one engine, over and over, `batch` of them in flight."""

    def __init__(self, engine: Engine, job: Job, suite: Suite, batch: int) -> None:
        self._engine, self._suite, self._batch = engine, suite, batch
        self._spec = job.spec.model_copy(update={"batch": batch})
        self._template = runner.Template(job.spec.chat_template_kwargs, job.target.answer_marker)
        self._see = thoughts.visible(engine, self._template.answer_marker, self._template.kwargs)
        self._ahead = self._endless()
        self._active: dict[str, runner.Live] = {}
        self._over = 0

    def steps(self, count: int) -> tuple[float, int]:
        """Go on for so many steps of the engine: seconds, and the sum of the requests in flight at each of them.

        Raises `UserError`.
        """
        start = time.perf_counter()
        requests = 0
        for _ in range(count):
            for _ in range(len(self._suite.conversations)):
                if len(self._active) == self._batch:
                    break
                self._submit(next(self._ahead))
            requests += len(self._active)
            if not requests:
                raise UserError(f"no conversation of {self._suite.name} could be generated here")
            self._step()
        return time.perf_counter() - start, requests

    def run(self, conversations: int) -> dict[str, float | int]:
        """Go on until so many more are over: seconds, tokens, and the mean number in flight while it stepped."""
        start, end = time.perf_counter(), self._over + conversations
        tokens = steps = running = 0
        while self._over < end:
            while len(self._active) < self._batch and self._over < end:
                self._submit(next(self._ahead))
            if not self._active:
                break
            running, steps = running + len(self._active), steps + 1
            tokens += self._step()
        if not tokens:
            raise UserError(f"--speedup: no conversation of {self._suite.name} could be generated here")
        return {"seconds": time.perf_counter() - start, "tokens": tokens, "running": running / steps}

    def drain(self) -> None:
        """Let what is in flight end, a turn each."""
        while self._active:
            for result in self._engine.step()[1]:
                del self._active[result.request_id]

    def _step(self) -> int:
        committed, finished = self._engine.step()
        for result in finished:
            live = self._active.pop(result.request_id)
            live.receive(result, self._engine.tokenizer, self._see, "recorded")
            self._submit(live)
        return committed

    def _submit(self, live: runner.Live) -> None:
        """Its next turn, unless it is over, or cannot be measured here."""
        if not live.over:
            live.submit(self._engine, self._spec, self._template, None)
        if live.over:
            self._over += 1
        else:
            self._active[live.request_id] = live

    def _endless(self) -> Iterator[runner.Live]:
        """The conversations in order, with another seed each time around."""
        first = self._spec.seeds[0]
        for seed in itertools.count(first):
            for conversation in in_order(self._suite):
                yield runner.Live(self._suite, conversation, seed)


def in_order(suite: Suite) -> list[Conversation]:
    """The suite's conversations, its categories evenly among each other: any part of the list has its share of each.

    Within a category at random, by a fixed seed; each begins at a random place, so that many of one conversation are
    not all in the middle.
    """
    draw = random.Random(0)
    shuffled = draw.sample(suite.conversations, len(suite.conversations))
    sizes, seen = Counter(one.category for one in shuffled), Counter[str | None]()
    begins = {category: draw.random() for category in sizes}
    places = []
    for one in shuffled:
        places.append((seen[one.category] + begins[one.category]) / sizes[one.category])
        seen[one.category] += 1
    return [one for _, one in sorted(zip(places, shuffled, strict=True), key=lambda pair: pair[0])]


def blocks(suite: Suite, batch: int) -> int:
    """Of so many conversations as `batch`; a large batch goes through the suite more than once."""
    return min(max(len(suite.conversations) // batch, FEWEST_BLOCKS), MOST_BLOCKS)


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
