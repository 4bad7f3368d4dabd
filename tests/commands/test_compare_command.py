"""`speceval compare`: which run the others are compared with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from speceval import cli

DEMO = Path(__file__).resolve().parents[2] / "results" / "reference" / "demo"
KL, LK = DEMO / "kl-eagle3-T0-greedy", DEMO / "lk-eagle3-T0-greedy"


def compare(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["speceval", "compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def test_over_names_the_drafter_that_the_others_are_compared_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, LK, KL, "--json") == 0
    by_place = json.loads(capsys.readouterr().out)
    assert compare(monkeypatch, KL, LK, "--over", "lk-eagle3", "--json") == 0
    assert json.loads(capsys.readouterr().out) == by_place
    assert [run["draft"] for run in by_place["runs"]] == ["lk-eagle3", "kl-eagle3"]


@pytest.mark.parametrize(("runs", "says"), [((KL, LK), "no runs"), ((LK, KL, LK), "2 runs")])
def test_over_needs_exactly_one_run_of_that_drafter(
    runs: tuple[Path, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drafter = "lk-eagle3" if len(runs) > 2 else "tv-eagle3"
    assert compare(monkeypatch, *runs, "--over", drafter) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--over {drafter}: {says}" in error
