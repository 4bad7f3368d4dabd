"""`speceval sweep`: what it prints, its exit codes, and commands that take its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from speceval.cli import app
from speceval.engines.simulated import SimulatedEngine
from speceval.errors import UserError

FILE = {
    "name": "s",
    "common": {"target": "zoo", "suites": ["demo"], "engine": "simulated", "max_tokens": 16, "temperature": 1},
    "axes": {"draft": ["kl-eagle3", "lk-eagle3"]},
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(FILE))
    return str(tmp_path / "s.yaml")


def sweep(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["sweep", *arguments])


def test_a_dry_run_measures_nothing(path: str, tmp_path: Path) -> None:
    done = sweep(path, "--dry-run", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0 and "2 cells; 2 runs, 0 of them measured" in done.stdout
    assert not (tmp_path / "out").exists()
    content = json.loads(sweep(path, "--dry-run", "--json").stdout)
    assert [row["engine"] for row in content["cells"]] == ["start", "swap"]


def test_the_tables_are_printed_and_other_commands_take_the_folder(path: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = sweep(path, "--out", out)
    assert done.exit_code == 0 and "lk-eagle3" in done.stdout and "2 of 2 runs" in done.stdout
    assert "tau demo" in done.stderr and "drafter swapped" in done.stderr
    page, figures = str(tmp_path / "page.html"), str(tmp_path / "figures")
    for command in (("table", out), ("report", out, "-o", page), ("plot", out, "-o", figures)):
        assert CliRunner().invoke(app, list(command)).exit_code == 0, command
    assert json.loads(sweep(path, "--out", out, "--json").stdout)["runs"][1]["status"] == "complete"


def test_a_failed_cell_is_listed_with_its_line_and_the_code_is_1(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps: list[bool] = []

    def breaking(self: SimulatedEngine) -> None:
        if self._order_number() == 0:
            raise ValueError("no luck")

    monkeypatch.setattr(SimulatedEngine, "_order_number", lambda self: len(swaps), raising=False)
    monkeypatch.setattr(SimulatedEngine, "warm_up", breaking)
    monkeypatch.setattr(SimulatedEngine, "close", lambda self: swaps.append(True))
    done = sweep(path, "--out", str(tmp_path / "out"))
    assert done.exit_code == 1 and "1 of 2 runs" in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FAILED"))
    assert "kl_eagle3" in line and line.endswith("ValueError: no luck")


def test_a_table_that_cannot_be_made_of_the_runs_does_not_hide_what_became_of_them(path: str, tmp_path: Path) -> None:
    axes = {"draft": ["kl-eagle3"], "top_k": [0, 50]}
    Path(path).write_text(yaml.safe_dump(FILE | {"axes": axes, "tables": ["paper-arch", "summary"]}))
    done = sweep(path, "--out", str(tmp_path / "out"))
    assert done.exit_code == 0 and "no table paper-arch: " in done.stdout and "2 of 2 runs" in done.stdout
    assert "kl-eagle3 (top\\_k=0)" in done.stdout and "kl-eagle3 (top\\_k=50)" in done.stdout  # as Markdown has them


@pytest.mark.parametrize(
    ("change", "out", "says"),
    [
        ({"tables": ["sumary"]}, "out", "field 'tables': unknown layout 'sumary'; did you mean summary?"),
        ({}, "s.yaml", "s.yaml: not a directory"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_before_anything_starts(
    path: str, tmp_path: Path, change: dict[str, Any], out: str, says: str
) -> None:
    Path(path).write_text(yaml.safe_dump(FILE | change))
    done = sweep(path, "--out", str(tmp_path / out))
    assert isinstance(done.exception, UserError) and says in str(done.exception)
    assert [file.name for file in tmp_path.iterdir()] == ["s.yaml"]


def test_demo_is_a_sweep_by_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from speceval.commands import sweep as command

    asked: list[str] = []
    monkeypatch.setattr(command, "_sweep", lambda file, *_: asked.append(file))
    for arguments in (["demo"], ["demo", "--all"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert asked == ["demo", "demo-all"]
