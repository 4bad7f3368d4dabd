"""Wherever times or speed-ups of the V2 runner on a CPU are shown, it is said that they are none of vLLM's."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from support.records import FACTS, MACHINE
from support.table_runs import constant, write_run

from speceval.estimate import comparison
from speceval.estimate.tuning import ALONE, Error, Rate, Setting
from speceval.show import notes, tuning
from speceval.show.comparison import comparison_tables
from speceval.show.layouts import build
from speceval.show.report import build as page
from speceval.show.tables import run_json
from speceval.store import StoredRun, read_run

SAYS = "no times of vLLM"


def timed_run(path: Path, runner: str, draft: str = "lk-eagle3") -> StoredRun:
    rows = [
        {
            "suite": "s", "batch": 1, "block": block, "alone_tokens": 100, "alone_seconds": 10.0 + block / 10,
            "drafted_tokens": 100, "drafted_seconds": 5.0,
        }
        for block in range(3)
    ]  # fmt: skip
    speedup = {"machine": MACHINE, "batches": [1], "timings": rows}
    facts = {"engine": FACTS | {"runner": runner}}
    asked = {"draft": draft, "spec": {"rate": 2.0}, "meta": {"speedup": speedup}, "fingerprint": facts}
    return read_run(write_run(path, {"s": constant(1, 2)}, **asked))


def under_load(run: StoredRun) -> StoredRun:
    """The same run, unfinished, with the times of a server's streams."""
    turns = run.turns.assign(sent=1.0, waited=0.0, ttft=0.1, latency=1.0, chunks=5.0)
    return dataclasses.replace(run, turns=turns, meta=run.meta.model_copy(update={"status": "running"}))


@pytest.mark.parametrize(("runner", "says"), [("V2", True), ("V1", False)])
def test_a_run_under_load_says_it(tmp_path: Path, runner: str, says: bool) -> None:
    run = under_load(timed_run(tmp_path / "run", runner))
    lines = [line for line in notes.of_run(run, run_json(run)) if line.startswith("load: ")]
    assert lines and any(SAYS in line for line in lines) == says


@pytest.mark.parametrize(("runner", "says"), [("V2", True), ("V1", False)])
@pytest.mark.parametrize("layout", ["paper-main", "load"])
def test_a_table_of_times_says_it(tmp_path: Path, layout: str, runner: str, says: bool) -> None:
    timed_run(tmp_path / "run", runner)
    table = build(layout, [tmp_path / "run"])
    assert any(SAYS in note for row in table.rows for cell in row.cells for note in cell.notes) == says


@pytest.mark.parametrize(("runner", "says"), [("V2", True), ("V1", False)])
def test_compare_says_it_of_speed_ups_alone(tmp_path: Path, runner: str, says: bool) -> None:
    runs = [timed_run(tmp_path / draft, runner, draft) for draft in ("kl-eagle3", "lk-eagle3")]
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(comparison_tables(comparison.compare_runs(runs)))
    assert (f"times of run 2: V2's kernels are interpreted on a CPU: {SAYS}" in console.export_text()) == says
    plain = [dataclasses.replace(run, meta=run.meta.model_copy(update={"speedup": None})) for run in runs]
    console.print(comparison_tables(comparison.compare_runs(plain)))
    assert SAYS not in console.export_text()


@pytest.mark.parametrize(("runner", "says"), [("V2", True), ("V1", False)])
def test_the_report_says_it(tmp_path: Path, runner: str, says: bool) -> None:
    assert (SAYS in page.render(page.gather([timed_run(tmp_path / "run", runner)]))) == says


@pytest.mark.parametrize(("runner", "says"), [("V2", True), ("V1", False)])
def test_the_heat_map_of_tune_says_it(runner: str, says: bool) -> None:
    rates = [
        Rate(setting, 1, 10.0, 9.0, 11.0, (speed, speed - 0.1, speed + 0.1), 1.5, 20.0, Error(()), pd.Series())
        for setting, speed in ((Setting("kl-eagle3", 2), 0.9), (ALONE, 1.0))
    ]
    assert (SAYS in tuning.heat_map(rates, "cpu", runner).axes[0].get_title()) == says
