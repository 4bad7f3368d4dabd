"""What surrounds one verification: progress and the report's file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speceval.exactness.run import Settings, Tell, verify
from speceval.exactness.verdict import Report
from speceval.files import write_whole
from speceval.measure.job import prepare
from speceval.measure.output import output_to, terminal
from speceval.store.schema import versioned
from speceval.terminal import wrote

if TYPE_CHECKING:
    from rich.console import Console

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
            report = verify(job, settings, directory, teller(console), output_to)
    else:
        report = verify(job, settings, directory, lambda stage, done, total: None, output_to)
    write(report, directory)
    if progress:
        wrote(directory / "verify.json")
    return report


def write(report: Report, directory: Path) -> None:
    """Write `directory`/verify.json, whole or not at all."""
    content = versioned("verify", report.as_json())
    write_whole(directory / "verify.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def teller(console: Console) -> Tell:
    """Progress on `console`: one line that is overwritten on a terminal, a line every few seconds elsewhere."""
    last, stage_now, began = 0.0, "", time.monotonic()

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal last, stage_now, began
        now = time.monotonic()
        if stage != stage_now:
            stage_now, began, last = stage, now, 0.0
        elif now - last < (0.25 if console.is_terminal else REFRESH) and done < total:
            return
        last = now
        share = f" {done}/{total} continuations" if total > 1 else ""
        left = f", {(now - began) * (total - done) / done:.0f} s left" if 0 < done < total and total > 1 else ""
        console.print(f"verify: {stage}{share}{left}", end="\r" if console.is_terminal else "\n", soft_wrap=True)

    return tell
