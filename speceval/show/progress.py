"""What a person sees while a run goes on: progress, and the engine's own output kept out of the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from speceval.measure.output import Watch
from speceval.measure.runner import Progress
from speceval.protocol import RunSpec

REFRESH = 0.5
"""Seconds between two updates of the display."""
PLAIN_REFRESH = 10.0
"""Seconds between two lines when the output is no terminal."""
WIDE = 110
"""Columns of a terminal that has room for a bar."""
MOST_OFTEN = 50
"""Time between two updates, at least, for each second that one takes: tau of 100,000 conversations takes a while."""


def watcher(console: Console, place: str = "", name: str = "") -> Watch:
    """A progress display on `console`: a live bar on a terminal, a line every ten seconds elsewhere.

    place: where the run is among others, "[3/40] ". name: what is measured [drafter and temperature].
    """
    return _bar(console, place, name) if console.is_terminal else _lines(console, place, name)


def running_tau(progress: Progress) -> str:
    """tau ± half-width of its 95 % interval over the conversations so far."""
    from speceval.estimate.statistics import ratio_interval

    assert progress.counts is not None
    counts: dict[tuple[str, str], list[int]] = {}
    for (suite, conversation, _), turns in progress.counts.items():
        total = counts.setdefault((suite, conversation), [0, 0])
        for accepted, steps in turns:
            total[0] += accepted + steps
            total[1] += steps
    if not any(steps for _, steps in counts.values()):
        return "tau –"
    tau = ratio_interval([a for a, _ in counts.values()], [s for _, s in counts.values()])
    if tau.value is None or tau.high is None:
        return f"tau {tau.value:.3f}"
    return f"tau {tau.value:.3f} ± {tau.high - tau.value:.3f}"


def _status(progress: Progress, spec: RunSpec) -> str:
    speed = f"{progress.tokens / max(time.monotonic() - progress.started, 1e-9):,.0f} tokens/s"
    if spec.replay is not None:  # emits one token a step, whatever would have been accepted: its counts are no tau
        return f"{speed}  replay"
    return speed if progress.counts is None else f"{speed}  {running_tau(progress)}"


def _name(spec: RunSpec) -> str:
    return f"{spec.draft} T={spec.temperature:g}"


def _bar(console: Console, place: str, name: str) -> Watch:
    @contextmanager
    def watch(progress: Progress, spec: RunSpec) -> Iterator[Callable[[], None]]:
        wide = console.width >= WIDE
        columns = (
            TextColumn("{task.description}", markup=False),
            *((BarColumn(),) if wide else ()),
            MofNCompleteColumn(),
            TextColumn(f"{'conversations  ' if wide else ''}{{task.fields[status]}}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # Refreshed by hand: a refresh thread would take the engine's time.
        with Bar(*columns, console=console, auto_refresh=False) as bar:
            task = bar.add_task(
                f"{place}{name or _name(spec)}",
                total=progress.conversations,
                completed=progress.done,
                status="",
            )

            def show() -> None:
                bar.update(task, completed=progress.done, status=_status(progress, spec), refresh=True)

            now_and_then = _every(REFRESH, show)

            def changed() -> None:
                if progress.done == progress.conversations:
                    show()
                else:
                    now_and_then()

            yield changed

    return watch


def _lines(console: Console, place: str, name: str) -> Watch:
    @contextmanager
    def watch(progress: Progress, spec: RunSpec) -> Iterator[Callable[[], None]]:
        def show() -> None:
            console.print(
                f"{place}{name or _name(spec)}: {progress.done}/{progress.conversations} "
                f"conversations, {_status(progress, spec)}",
                soft_wrap=True,
            )

        yield _every(PLAIN_REFRESH, show)

    return watch


def _every(seconds: float, show: Callable[[], None]) -> Callable[[], None]:
    """Calls `show` at most that often, and so that it takes no more than a fiftieth of the time."""
    due = time.monotonic() + seconds

    def maybe() -> None:
        nonlocal due
        begin = time.monotonic()
        if begin >= due:
            show()
            end = time.monotonic()
            due = begin + max(seconds, MOST_OFTEN * (end - begin))

    return maybe
