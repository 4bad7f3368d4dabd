"""What surrounds one verification: progress and the report's file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speceval.exactness.run import LOG, STARTING, Settings, Tell, verify
from speceval.exactness.verdict import Report
from speceval.files import write_whole
from speceval.measure.job import prepare
from speceval.measure.output import output_to, terminal
from speceval.measure.starting import OneLine, Starting
from speceval.store.schema import versioned
from speceval.terminal import wrote

if TYPE_CHECKING:
    pass

REFRESH = 5.0
"""Seconds between two lines of progress."""


def execute(settings: Settings, out: Path | None, progress: bool, **asked: Any) -> Report:
    """Verify what `asked` names (arguments of `job.prepare`) and write `verify.json`.

    `out`: directory for the report and the engine's log, by default results/verify/<name>. `progress`: whether to show
    it on standard error. Raises `UserError`.
    """
    settings.check()
    # The suite plays no part, but a run has one. What the verifier sees is recorded by verify itself.
    job = prepare(suite_names=["demo"], record=False, **asked)
    directory = out or Path("results") / "verify" / job.spec.name
    if progress:
        with terminal() as console:
            starting = Starting(console, "the engine")
            line = OneLine(console)
            tell = teller(line, lambda: starting.begin(directory / LOG), starting.over)
            try:
                report = verify(job, settings, directory, tell, output_to)
            except KeyboardInterrupt:
                line.clear()
                console.print("interrupted: verify keeps no samples; the same command starts again")
                raise
            finally:
                starting.over()
                line.clear()
    else:
        report = verify(job, settings, directory, lambda stage, done, total: None, output_to)
    write(report, directory)
    if progress:
        wrote(directory / "verify.json")
    return report


def no_more() -> None:
    """Do nothing."""


def write(report: Report, directory: Path) -> None:
    """Write `directory`/verify.json, whole or not at all."""
    content = versioned("verify", report.as_json())
    write_whole(directory / "verify.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def teller(line: OneLine, begin: Callable[[], None] = no_more, over: Callable[[], None] = no_more) -> Tell:
    """Progress in `line`: overwritten on a terminal, every few seconds a new one elsewhere.

    begin, over: what is called when the engine starts, and at any other stage.
    """
    last, stage_now, began = 0.0, "", time.monotonic()

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal last, stage_now, began
        now = time.monotonic()
        if not total:
            line.keep(f"verify: {stage}")
            return
        if stage != stage_now:
            stage_now, began, last = stage, now, 0.0
            line.clear()
            (begin if stage == STARTING else over)()
        elif now - last < (0.25 if line.over_written else REFRESH) and done < total:
            return
        last = now
        share = f" {done}/{total} continuations" if total > 1 else ""
        left = f", {(now - began) * (total - done) / done:.0f} s left" if 0 < done < total and total > 1 else ""
        if not (stage == STARTING and line.over_written):
            line.say(f"verify: {stage}{share}{left}", now=True)
        if done >= total and total > 1:
            line.clear()

    return tell
