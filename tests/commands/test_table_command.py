"""`speceval table`: what it prints is what the runs and the paper say; bad input gets one line."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.table_runs import constant, write_run

from speceval import cli
from speceval.show import published
from speceval.show.layouts import LAYOUTS, build
from speceval.show.render import FORMATS
from speceval.show.tables import run_json
from speceval.store import read_run

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "results" / "published"
DEMO = ROOT / "results" / "reference" / "demo"

Call = Callable[..., str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["speceval", "table", *map(str, arguments)])
        monkeypatch.setattr(cli, "_exit", lambda found, line="": (print(line, file=sys.stderr), sys.exit(found)))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        assert caught.value.code == code, captured.err
        return captured.err if code else captured.out

    return run


def plain(latex: str) -> str:
    """What a LaTeX cell shows: without bold, marks and escapes."""
    latex = re.sub(r"\$\^\{\\mathrm\{[^}]*\}\}\$", "", latex.strip())
    for command in (r"multicolumn\{\d+\}\{\w\}", "textit", "textbf"):
        latex = re.sub(rf"\\{command}\{{(.*)\}}$", r"\1", latex)
    return latex.replace("$-$", "-")


def test_the_papers_table_is_reproduced_cell_by_cell(call: Call) -> None:
    lines = [
        line.removesuffix(r"\\").strip()
        for line in call(PUBLISHED, "--layout", "paper-main", "--format", "latex").splitlines()
        if line.endswith(r"\\")
    ]
    suites = ("MT-Bench", "HumanEval", "GSM8K")
    columns = [(t, suite, what) for t in (0, 1) for suite in suites for what in ("tau", "speedup")]
    shown: dict[tuple[object, ...], str] = {}
    target = ""
    for line in lines[3:]:
        cells = [plain(cell) for cell in line.split("&")]
        if len(cells) == 1:
            target = cells[0]
            continue
        architecture, k, drafter, *numbers = cells
        for (temperature, suite, what), text in zip(columns, numbers, strict=True):
            shown[target, architecture, int(k), drafter, temperature, suite, what] = text
    found = 0
    for row in published.load().rows:
        name = re.sub(r" \(d?dagger\)$", "", row.setup)
        place = (row.target, row.architecture, row.k, name, row.temperature, row.suite)
        assert shown.pop((*place, "tau")) == f"{row.tau:.2f}", place
        assert shown.pop((*place, "speedup")) == ("" if row.speedup is None else f"{row.speedup:.2f}"), place
        found += 1
    assert found == 222 and not shown


def test_the_choices_are_the_layouts_and_the_formats(call: Call) -> None:
    for layout, name in zip(LAYOUTS, itertools.cycle(FORMATS), strict=False):
        assert call(DEMO / "lk-eagle3-T0-greedy", "--layout", layout, "--format", name)


def test_json_and_csv_say_what_show_says(call: Call) -> None:
    run = DEMO / "lk-eagle3-T1-probabilistic"
    wanted = run_json(read_run(run))["suites"]["demo"]["tau"]
    numbers = json.loads(call(run, "--format", "json"))["numbers"]
    [record] = [record for record in numbers if record["definition"] == "tau"]
    assert [record[name] for name in ("value", "low", "high")] == [wanted[name] for name in ("value", "low", "high")]
    assert (record["n"], record["run"], record["source"]) == (24, str(run), "measured")
    [row] = [row for row in csv.DictReader(io.StringIO(call(run, "--format", "csv"))) if row["definition"] == "tau"]
    assert float(row["value"]) == wanted["value"]


def test_a_folder_is_searched_and_the_first_format_is_markdown(call: Call) -> None:
    lines = call(DEMO).splitlines()
    assert sum(line.startswith("|") for line in lines) == 2 + 6


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere"], ["nowhere", "no runs here"]),
        ([PUBLISHED, "--layout", "positions"], ["--layout positions", "name a run"]),
        ([PUBLISHED, "--over", "KL"], ["--over", "--layout summary", "paper-mean"]),
        ([PUBLISHED, "--layout", "paper-mean", "--over", "kl"], ["--over kl", "there are KL, TV"]),
        ([PUBLISHED, "--layout", "other"], ["--layout", "paper-main"]),
        ([PUBLISHED, "--format", "pdf"], ["--format", "latex"]),
        ([], ["RUN"]),
    ],
)
def test_bad_input_gets_one_line(call: Call, arguments: list[object], parts: list[str]) -> None:
    complaint = call(*arguments, code=cli.EXIT_BAD_INPUT).strip()
    assert "\n" not in complaint and all(part in complaint for part in parts), complaint


def test_a_terminal_is_not_steered_by_a_name(call: Call, tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"\x1b[2Jsuite \u202e|": constant(1)}, draft="\x1b]0;gone\x07[red]draft[/red] שלום")
    for layout in LAYOUTS:
        for text in (render(build(layout, [tmp_path])) for name, render in FORMATS.items() if name != "json"):
            assert "\x1b" not in text and "\u202e" not in text and "gone" not in text
    assert "draft" in call(tmp_path)


def test_asking_for_help_imports_nothing_heavy() -> None:
    code = "import speceval.commands.table, sys; print({'pandas', 'torch', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
