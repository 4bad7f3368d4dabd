"""`scripts/upstream_tests.py` on reports as pytest writes them: what each side passes, and what one alone does."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
REPORT = """<testsuites><testsuite>
<testcase name="law"/>
<testcase name="bonus[1]"><failure message="IndexError">…</failure></testcase>
<testcase name="gpu"><skipped message="no CUDA"/></testcase>
<testcase name="hub"><error message="offline"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("upstream_tests", ROOT / "scripts" / "upstream_tests.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULT", tmp_path / "upstream.json")
    monkeypatch.setattr(module, "_version", lambda: "0.32.0")
    return module


def test_outcomes_are_read_from_pytest_s_report(script: ModuleType) -> None:
    assert script.outcomes(REPORT) == {"law": "passed", "bonus[1]": "failed", "gpu": "skipped", "hub": "error"}


def test_a_row_names_what_one_side_alone_passes(script: ModuleType) -> None:
    patched, stock = {"law": "passed", "bonus": "failed", "hub": "error"}, {"law": "failed", "bonus": "passed"}
    row = script.row("a.py", patched, stock)
    assert (row["only_patched"], row["only_stock"]) == (["law"], ["bonus"])
    assert script.line(row) == "a.py: with the patches 1 error, 1 failed, 1 passed; without 1 failed, 1 passed"


def test_each_file_is_kept_as_it_ends_and_an_interrupted_run_goes_on(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run(sdist: Path, file: str, patches: bool) -> dict[str, str]:
        ran.append(file)
        if len(ran) > 4:
            raise KeyboardInterrupt
        return {"law": "passed" if patches else "failed"}

    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr(script, "_check", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        script.main(["sdist", "--write"])
    kept = json.loads(script.RESULT.read_text())
    assert [row["file"] for row in kept["files"]] == list(script.FILES[:2])
    ran[:] = []
    monkeypatch.setattr(script, "run", lambda sdist, file, patches: ran.append(file) or {"law": "passed"})
    assert script.main(["sdist", "--write"]) == 0
    assert set(ran) == set(script.FILES[2:]) and "passes with the patches alone" in capsys.readouterr().out
    assert len(json.loads(script.RESULT.read_text())["files"]) == len(script.FILES)


def test_a_test_that_the_patches_break_is_an_exit_code_unless_it_is_listed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "_check", lambda *_: None)
    for name, code in (("other", 1), (next(iter(script.INHERENT)), 0)):
        monkeypatch.setattr(
            script, "run", lambda sdist, file, patches, name=name: {name: "failed" if patches else "passed"}
        )
        assert script.main(["sdist", script.FILES[0], "--write"]) == code
        table = script.table()
        assert f"Without alone: `{name}`" in table and "| all | 1 | 1 | 0 | 0 | 1 |" in table


def test_what_is_missing_is_one_line(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([str(tmp_path)]) == 4
    assert capsys.readouterr().err.count("\n") == 1 and sys.modules
