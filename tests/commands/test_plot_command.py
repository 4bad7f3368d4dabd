"""`speceval plot` of a sweep: more runs than a figure tells apart, and runs that nothing can be drawn of."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.records import altered
from support.report_runs import write_run
from typer.testing import CliRunner

from speceval.cli import app
from speceval.commands import plot
from speceval.show.plots.style import COLOURS
from speceval.store import StoredRun


def test_more_runs_than_a_figure_tells_apart_are_drawn_in_groups_that_belong_together(tmp_path: Path) -> None:
    assert len(COLOURS) == plot.MOST
    a = write_run(tmp_path / "a")
    runs = [altered(a, spec__temperature=t, spec__draft=f"d{n}") for t in (0.5, 1.0) for n in range(9)]
    groups = plot.together(runs)
    method = a.meta.fingerprint.engine.method
    names = [f"zoo-{method}-T{t}-probabilistic-k{a.meta.spec.k}{end}" for t in ("0.5", "1") for end in ("", "-2")]
    assert list(groups) == names and [len(group) for group in groups.values()] == [8, 1, 8, 1]


def test_a_run_without_drafts_does_not_keep_the_others_from_being_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (write_run(tmp_path / name) for name in "ab")
    steps = b.steps.assign(drafted=0, accepted=0)
    empty = StoredRun(b.directory, b.meta, b.turns, steps)
    monkeypatch.setattr("speceval.estimate.books.read", lambda path: empty if path.name == "b" else a)
    drawn: list[list[StoredRun]] = []
    monkeypatch.setattr(plot, "write_all", lambda runs, *_: drawn.append(runs))
    done = CliRunner().invoke(app, ["plot", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "figures")])
    assert (
        done.exit_code == 0 and drawn == [[a]] and "left out: " in done.stdout and "no step has drafts" in done.stdout
    )
