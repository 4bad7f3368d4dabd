"""scripts/gpu_check.py: what it can do without a GPU in small, and that it says what it cannot."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recorders_part_runs_in_small(script: ModuleType) -> None:
    (row,) = script.recorder(dry=True)
    assert row["recorder_ms"] > 0 and row["softmax_ms"] > 0 and row["k"] == script.K


def test_runs_that_did_the_same_steps_or_have_one_law_are_told_so(script: ModuleType) -> None:
    rows = {name: {"digest": "a", "tau_rb": {"value": 2.4, "se": 0.03}} for name in ("run", "again", "v1")}
    rows["eager"] = {"digest": "b"}
    rows["v1"]["tau_rb"] = {"value": 2.0, "se": 0.04}
    told = script.agreement(rows)
    assert (told["run and again: the same steps"], told["run and eager: the same steps"]) == (True, False)
    assert told["run and v1: z, as if they were independent"] == 8.0
    assert script.agreement({"run": rows["run"]}) == {}


def test_without_a_gpu_every_part_is_named_as_not_done(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "device", lambda: "cpu")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path)])
    script.main()
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert [row["part"] for row in parts] == list(script.PARTS)
    assert {row["status"] for row in parts} == {"skipped"} and all("no GPU" in row["note"] for row in parts)
    page = (tmp_path / "gpu_check.md").read_text()
    assert all(f"| {name} | skipped |" in page for name in script.PARTS)


def test_trying_it_leaves_what_was_seen_on_a_gpu_as_it_is(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "device", lambda: "cpu")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    script.main()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["gpu-check"]


def test_a_part_that_there_is_not_is_one_line(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--only", "recorder,lwa"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--only lwa: the parts are recorder, " in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["recorder", "patches", "live", "kernels", "selftest", "law", "run", "eager", "v1"])
def test_on_a_gpu_every_part_is_done(script: ModuleType, part: str) -> None:
    row = script.attempt(part, dry=False)
    print(json.dumps(row, indent=1))
    assert row["status"] == "done"


def test_what_the_project_has_seen_on_a_gpu_is_not_a_trial_on_a_cpu() -> None:
    seen = json.loads((SCRIPT.parents[1] / "results" / "gpu" / "gpu_check.json").read_text())
    assert seen["device"] != "cpu" and not seen["dry"]
    assert any(part["status"] == "done" for part in seen["parts"])
