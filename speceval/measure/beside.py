"""The target alone, in a process of its own: timed in turns with what drafts, and asked for answers.

Engines of one process share vLLM's state, and one that is closed would take the others along.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from speceval import engines
from speceval.engines.base import Engine
from speceval.errors import UserError
from speceval.measure import runner
from speceval.measure.job import Job
from speceval.measure.output import output_to
from speceval.measure.start import order
from speceval.measure.stretch import Memory
from speceval.measure.timing import Stream
from speceval.store.layout import Texts

PATIENCE = 10.0
"""Seconds that the process gets to end in order."""
LOOK = 1.0
"""Seconds after which it is looked whether the process is still there."""


class Beside:
    """An engine of the target of a job, which has been fetched, without a drafter. Raises `UserError`."""

    def __init__(self, job: Job, log: Path) -> None:
        self._log = log
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(job, theirs, log), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.device = str(self._answer())
        except UserError:
            self.close()
            raise

    def answers(self, samples: int) -> Texts:
        """What the target answers to so many of the suite's prompts or more: each conversation as often as another."""
        return dict(self._ask("answers", samples))

    def begin(self, batch: int) -> None:
        """Go on with requests of its own, so many in flight."""
        self._ask("begin", batch)

    def steps(self, count: int) -> tuple[float, int]:
        """`timing.Stream.steps`."""
        seconds, steps = self._ask("steps", count)
        return seconds, steps

    def run(self, conversations: int) -> dict[str, float | int]:
        """`timing.Stream.run`."""
        return dict(self._ask("run", conversations))

    def drain(self) -> None:
        """Let what is in flight end."""
        self._ask("drain")

    def close(self) -> None:
        """End the process: in order if it can, and without leaving anything behind."""
        with suppress(OSError):  # it is gone, or this was called before
            self._pipe.send(None)
            self._process.join(PATIENCE)
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._pipe.send((name, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            while not self._pipe.poll(LOOK):
                if not self._process.is_alive():
                    raise EOFError
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise UserError(f"the engine of the target alone has ended, {self._log} says why") from error
        if isinstance(answer, _Refused):
            raise answer.error from (None if answer.cause is None else RuntimeError(answer.cause))
        return answer


def samples_of(job: Job, samples: int) -> Job:
    """The job with so many samples or more of its first suite's conversations, the same number of each."""
    from speceval.measure.timing import in_order

    chosen = in_order(job.suites[0])[:samples]
    first = job.spec.seeds[0]
    seeds = tuple(range(first, first + -(-samples // len(chosen))))
    spec = job.spec.model_copy(update={"seeds": seeds})
    return replace(job, spec=spec, suites=[replace(job.suites[0], conversations=chosen)])


def generate(engine: Engine, job: Job) -> list[dict[str, Any]]:
    """The job's conversations, as the lines of a journal; its texts if it has some. Raises `UserError`."""
    memory, template = Memory(), runner.Template(job.spec.chat_template_kwargs, job.target.answer_marker)
    progress = runner.Progress(0)
    runner.measure(engine, job.spec, job.suites, template, memory, progress, lambda: None, job.texts, ahead=1)
    return memory.lines


@dataclass(frozen=True)
class _Refused:
    """An error on its way to the other process: pickled, one loses its cause, which tells a failure from a refusal."""

    error: UserError
    cause: str | None

    @classmethod
    def of(cls, error: UserError) -> Self:
        return cls(error, None if error.__cause__ is None else repr(error.__cause__))


class _Alone:
    """What the process does."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self._job = engine, job
        self._stream: Stream | None = None

    def answers(self, samples: int) -> list[tuple[tuple[str, str, int, int], tuple[int, ...]]]:
        lines = generate(self._engine, samples_of(self._job, samples))
        return [
            ((line["suite"], line["conversation"], line["seed"], turn["turn"]), tuple(turn["token_ids"]))
            for line in lines
            for turn in line["turns"]
        ]

    def begin(self, batch: int) -> None:
        self._stream = Stream(self._engine, self._job, self._job.suites[0], batch)

    def steps(self, count: int) -> tuple[float, int]:
        assert self._stream is not None
        return self._stream.steps(count)

    def run(self, conversations: int) -> dict[str, float | int]:
        assert self._stream is not None
        return self._stream.run(conversations)

    def drain(self) -> None:
        assert self._stream is not None
        self._stream.drain()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, which a killed one cannot ask for: what is under way may
    take minutes, and holds the device's memory.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job, pipe: Connection, log: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    with output_to(log):
        try:
            engine = engines.open(order(job).alone())
        except UserError as error:
            pipe.send(_Refused.of(error))
            return
        with closing(engine):
            engine.warm_up()
            pipe.send(engine.facts().device)
            alone = _Alone(engine, job)
            while True:
                try:
                    asked = pipe.recv()
                except EOFError:
                    return
                if asked is None:
                    return
                name, arguments = asked
                try:
                    pipe.send(getattr(alone, name)(*arguments))
                except UserError as error:
                    pipe.send(_Refused.of(error))
