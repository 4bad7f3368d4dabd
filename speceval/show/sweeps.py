"""A sweep as its reader sees it: the plan before, the list of what failed after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from speceval.catalog.schema import Draft
from speceval.measure.job import Job
from speceval.measure.kept import How, expected
from speceval.measure.start import order
from speceval.measure.sweep import Cell, Sweep
from speceval.show import published
from speceval.show.published import Figure
from speceval.store import RUN, read_meta, read_run
from speceval.store.schema import RunMeta
from speceval.suites import Suite

NO_CHECKPOINT = "no public checkpoint"
NOT_SEEN = "not seen"
LEFT = ("target", "drafter", "drafting", "settings", "suite")


@dataclass(frozen=True)
class Known:
    """What is stored of a cell: its state, and what it took."""

    state: str
    tokens: int = 0
    seconds: float = 0.0
    """In which at least one engine measured."""
    conversations: int = 0
    left: float = 1.0
    """The part of it that is to be measured."""

    @classmethod
    def of(cls, cell: Cell) -> Known:
        """As the store has it. Raises `UserError` for a run.json that cannot be read."""
        if not (cell.job.directory / RUN).is_file():
            return cls("to do")
        meta: RunMeta = read_meta(cell.job.directory)
        state, left = "books do not balance" if meta.problems else "measured", 0.0
        if meta.status == "running":  # one that was killed has more in its journal than run.json tells
            done = read_run(cell.job.directory).conversations
            state, left = f"{done} of {meta.conversations}", 1 - done / max(meta.conversations, 1)
        return cls(
            state,
            sum(segment.tokens for segment in meta.segments),
            meta.engine_seconds if meta.wall_seconds is None else meta.wall_seconds,
            sum(segment.conversations for segment in meta.segments),
            left,
        )


def plan(sweep: Sweep) -> dict[str, Any]:
    """What a sweep will do: a row for each run and suite, and totals.

    Tokens are those of runs that are stored, for others what the same suites took in stored runs of the sweep, or at
    most what `max_tokens` allows. Seconds of generation are told where a run of the same target is stored.
    """
    known = [Known.of(cell) for cell in sweep.cells]
    rows: list[dict[str, Any]] = []
    tokens_left = seconds_left = 0.0
    timed, engine = True, _engines(sweep, known)
    for number, (cell, state) in enumerate(zip(sweep.cells, known, strict=True), start=1):
        spec = cell.job.spec
        tokens, bound = _tokens(sweep, known, cell)
        speed = _speed(sweep, known, cell)
        if state.left:
            tokens_left += tokens * state.left
            timed = timed and speed is not None
            seconds_left += tokens * state.left / speed if speed else 0
        for suite in cell.job.suites:
            figure = published.figure_of(spec, suite.name)
            rows.append(
                {
                    "run": number,
                    "target": spec.target,
                    "drafter": spec.draft,
                    "k": spec.k,
                    "temperature": spec.temperature,
                    "drafting": spec.drafting,
                    "settings": cell.settings,
                    "suite": suite.name,
                    "conversations": len(suite.conversations) * len(spec.seeds),
                    "tokens": round(tokens * _share(suite, cell)),
                    "tokens_at_most": bound,
                    "engine": engine.get(number),
                    "state": state.state,
                    "checkpoint": checkpoint(cell.job.draft),
                    "published": None if figure is None else figure.tau,
                    "directory": str(cell.job.directory),
                }
            )
    if sweep.file.published:
        rows += _unrepeated(sweep)
    return {
        "sweep": sweep.file.name,
        "directory": str(sweep.directory),
        "cells": rows,
        "runs": len(sweep.cells),
        "measured": sum(not state.left for state in known),
        "engine_starts": [*engine.values()].count("start"),
        "tokens_left": round(tokens_left),
        "seconds_left": seconds_left if timed else None,
        "left_out": sweep.left_out,
    }


def _engines(sweep: Sweep, known: list[Known]) -> dict[int, How]:
    """Number of each run that is to be measured, from 1 -> how it gets its engine after the one before it."""
    engines: dict[int, How] = {}
    last: Job | None = None
    for number, (cell, state) in enumerate(zip(sweep.cells, known, strict=True), start=1):
        if state.left:
            engines[number] = "start" if last is None else expected(order(last), order(cell.job))
            last = cell.job
    return engines


def plan_table(content: dict[str, Any]) -> Table:
    """The rows of `plan`."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"Sweep {content['sweep']}", title_justify="left")
    with_figures = any(row["published"] is not None for row in content["cells"])
    with_settings = any(row["settings"] for row in content["cells"])
    told = ("settings",) if with_settings else ()
    for heading in ("run", "target", "drafter", "K", "T", "drafting", *told, "suite", "conversations", "tokens"):
        table.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=True)
    for heading in ("engine", "state", "checkpoint", *(["published"] if with_figures else [])):
        table.add_column(heading, justify="right" if heading == "published" else "left", no_wrap=True)
    above: list[str] = []
    for row in content["cells"]:
        bound = "≤ " if row["tokens_at_most"] else ""
        run = [
            "" if row["run"] is None else str(row["run"]),
            *(row["target"], row["drafter"], str(row["k"]), f"{row['temperature']:g}", row["drafting"]),
            *([row["settings"]] if with_settings else []),
        ]
        cells = [
            *(run if run != above else [""] * len(run)),  # the suites of a run stand below each other
            row["suite"],
            "" if row["conversations"] is None else f"{row['conversations']:,}",
            "" if row["tokens"] is None else f"{bound}{row['tokens']:,}",
            *((row["engine"] or "", row["state"], row["checkpoint"]) if run != above else ("", "", "")),
        ]
        if with_figures:
            cells.append("" if row["published"] is None else f"{row['published']:.2f}")
        table.add_row(*cells)
        above = run
    return table


def plan_lines(content: dict[str, Any]) -> Iterator[str]:
    """What is said below the table."""
    cells = content["cells"]
    without = sum(row["state"] == NO_CHECKPOINT for row in cells)
    yield (
        f"{_count(len(cells), 'cell')}{f', {without} of them without a public checkpoint' if without else ''}; "
        f"{_count(content['runs'], 'run')}, {content['measured']} of them measured, in {content['directory']}; "
        f"{_count(content['engine_starts'], 'engine start')}"
    )
    time = content["seconds_left"]
    told = "not known before a run of each target is stored" if time is None else f"about {_duration(time)}"
    yield "a cell is one suite of a run, and the facts of a run stand beside its first suite"
    yield "engine: start: a new one; swap: the last one with another drafter's weights; same: the last one"
    yield "tokens: ≤ is what max_tokens allows, else what the same suites took in runs that are stored"
    if any(NOT_SEEN in row["checkpoint"] for row in cells):
        yield f"{NOT_SEEN}: the checkpoint's name follows its authors' others; nobody has confirmed that it is there"
    if any(row["published"] is not None for row in cells):
        yield f"published: tau in {published.load().source}, {published.load().title}"
    most = " at most" if any(row["tokens_at_most"] and row["engine"] for row in cells) else ""
    yield f"left: {content['tokens_left']:,} tokens{most}; generation: {told}"
    yield from (f"left out: {line}" for line in content["left_out"])


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def checkpoint(draft: Draft) -> str:
    """Where a drafter's weights are."""
    if draft.source == "none":
        return "none needed"
    place = f"{draft.source}" if draft.source != "hub" else str(draft.model)
    return place if draft.confirmed else f"{place} ({NOT_SEEN})"


def _unrepeated(sweep: Sweep) -> Iterable[dict[str, Any]]:
    """Published figures that no run of the sweep repeats."""
    repeated = {published.figure_of(cell.job.spec, suite.name) for cell in sweep.cells for suite in cell.job.suites}
    for figure in published.load().rows:
        if figure not in repeated:
            yield _unmeasured(figure)


def _unmeasured(figure: Figure) -> dict[str, Any]:
    row = dict.fromkeys(("run", "conversations", "tokens", "engine", "directory"))
    return row | {
        "target": figure.target,
        "drafter": f"{figure.architecture} {figure.setup}",
        "k": figure.k,
        "temperature": figure.temperature,
        "drafting": "probabilistic" if figure.temperature else "greedy",
        "settings": "",
        "suite": _our_name(figure.suite),
        "tokens_at_most": False,
        "state": NO_CHECKPOINT,
        "checkpoint": "",
        "published": figure.tau,
    }


def _our_name(suite: str) -> str:
    """What we call a suite of the published figures."""
    return next((ours for ours, theirs in published.load().suites.items() if theirs == suite), suite)


def _tokens(sweep: Sweep, known: list[Known], cell: Cell) -> tuple[float, bool]:
    """Tokens that a run takes, and whether that is the most that it may take."""
    names = [suite.name for suite in cell.job.suites]
    samples = sum(len(suite.conversations) for suite in cell.job.suites) * len(cell.job.spec.seeds)
    same = [k for c, k in _measured(sweep, known, cell) if [suite.name for suite in c.job.suites] == names]
    if same:
        return samples * sum(k.tokens for k in same) / max(sum(k.conversations for k in same), 1), False
    return sum(_most(suite, cell) for suite in cell.job.suites), True


def _speed(sweep: Sweep, known: list[Known], cell: Cell) -> float | None:
    """Tokens per second of the stored runs of the same target."""
    same = [k for _, k in _measured(sweep, known, cell)]
    seconds = sum(k.seconds for k in same)
    return sum(k.tokens for k in same) / seconds if seconds else None


def _measured(sweep: Sweep, known: list[Known], cell: Cell) -> Iterator[tuple[Cell, Known]]:
    for other, state in zip(sweep.cells, known, strict=True):
        if state.conversations and other.job.target == cell.job.target:
            yield other, state


def _most(suite: Suite, cell: Cell) -> int:
    """Tokens that a suite may take."""
    longest = cell.job.spec.max_tokens or suite.max_tokens
    return sum(len(one.turns) for one in suite.conversations) * longest * len(cell.job.spec.seeds)


def _share(suite: Suite, cell: Cell) -> float:
    """A suite's part of a run's tokens."""
    return _most(suite, cell) / max(sum(_most(other, cell) for other in cell.job.suites), 1)
