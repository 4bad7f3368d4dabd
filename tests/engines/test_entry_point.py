"""An engine of another package is found by its name and measured like any other."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ten_lines

from speceval import engines
from speceval.errors import UserError
from speceval.store import read_run

pytestmark = pytest.mark.slow


RUN = ("run", "--engine", "ten-lines", "--target", "zoo", "--draft", "lk-eagle3", "--k", "3", "--temp", "1")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path that holds the page's engine."""
    folder = ten_lines.install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def speceval(*arguments: str, site: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "speceval", *arguments]
    return subprocess.run(command, cwd=site.parent, env=environment, capture_output=True, text=True)


def test_the_page_s_engine_is_run_from_the_command_line_to_a_table(installed: Path) -> None:
    """tau is 2: one draft of each step is accepted, whatever the prompt."""
    done = speceval(*RUN, "--max-tokens", "9", "--out", "run", site=installed)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "starting ten-lines; its log: run/engine.log\n"
    run = read_run(installed.parent / "run")
    assert run.meta.problems == [] and run.meta.evidence == "steps" and run.meta.spec.engine == "ten-lines"
    assert len(run.steps) == 4 * run.conversations and (run.steps["accepted"] == 1).all()
    assert "probabilistic drafting · engine ten-lines\n" in done.stdout
    shown = json.loads(speceval("show", "run", "--json", site=installed).stdout)
    assert shown["suites"]["demo"]["tau"]["value"] == 2 and shown["problems"] == []
    table = speceval("table", "run", site=installed)
    assert table.returncode == 0 and "2.00" in table.stdout, table.stderr


def test_the_page_s_engine_has_ten_lines_of_its_own() -> None:
    code = ten_lines.PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (engine,) = (node for node in ast.parse(code).body if isinstance(node, ast.ClassDef))
    methods = [node for node in engine.body if isinstance(node, ast.FunctionDef)]
    own = [node for node in engine.body if not isinstance(node, ast.FunctionDef | ast.Expr)]
    assert len(own) + sum(len(method.body) for method in methods) <= 10


def test_it_is_named_among_the_engines_that_there_are(installed: Path) -> None:
    assert engines.names() == ["vllm", "simulated", "server", "own-server", "ten-lines"]
    assert engines.find("ten-lines").__module__ == "ten_lines"
    with pytest.raises(UserError, match=r"^--engine tenlines: there is no such engine; there are vllm, simulated"):
        engines.find("tenlines")


@pytest.mark.parametrize(
    ("value", "says"), [("no_such_module:Engine", "no_such_module"), ("ten_lines:Other", "has no attribute 'Other'")]
)
def test_an_entry_that_leads_nowhere_is_one_line(installed: Path, value: str, says: str) -> None:
    entries = installed / "ten_lines-1.0.dist-info" / "entry_points.txt"
    entries.write_text(f"[{engines.GROUP}]\nbroken = {value}\n")
    with pytest.raises(UserError, match=f"^--engine broken: {value} cannot be loaded: .*{says}"):
        engines.find("broken")


def test_no_package_takes_the_place_of_an_engine_of_ours(installed: Path) -> None:
    entries = installed / "ten_lines-1.0.dist-info" / "entry_points.txt"
    entries.write_text(f"[{engines.GROUP}]\nsimulated = ten_lines:FirstDraft\n")
    assert engines.names() == ["vllm", "simulated", "server", "own-server"]
    assert engines.find("simulated").__module__ == "speceval.engines.simulated"
