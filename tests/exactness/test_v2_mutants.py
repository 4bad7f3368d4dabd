"""`speceval verify --runner v2` on vLLM's own code, right and broken on purpose (docs/trust/is-it-exact.md has all)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import live, v2_mutants

pytestmark = [pytest.mark.slow, pytest.mark.engine]

SMALL = {"none": "not enough samples", "q of another slot": "biased"}
"""What so few continuations tell. False alarms of a run: below 1e-6."""
MORE = {"token one off, q not": "biased"}
HEADS = {
    "MEDUSA as it is": "not enough samples",
    "MEDUSA with one noise for all positions": "biased",
    "MLP speculator with q of another slot": "biased",
}
"""`vllm_patches.speculator`, right and broken."""
SAMPLES = {"MEDUSA with one noise for all positions": 1000}
"""Continuations, where 400 may not be enough: with 2000 its p was 3e-40."""


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    script = Path(v2_mutants.__file__)
    one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), name, str(folder / f"{name}.json"), str(SAMPLES.get(name, 400))]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, env=os.environ | live.V2 | one_process, stdout=log, stderr=subprocess.STDOUT)


@pytest.mark.parametrize(
    "expected",
    [SMALL, *(pytest.param(more, marks=pytest.mark.long) for more in (MORE, HEADS))],
    ids=["small", "more", "heads"],
)
def test_what_is_broken_in_v2_is_found_and_what_is_right_is_not(tmp_path: Path, expected: dict[str, str]) -> None:
    started = {name: start(tmp_path, name) for name in expected}
    verdicts = {}
    for name, process in started.items():
        assert process.wait(timeout=600) == 0, (tmp_path / f"{name}.log").read_text()[-4000:]
        report = json.loads((tmp_path / f"{name}.json").read_text())
        print(name, report["line"])
        assert report["engine"]["runner"] == "V2" and report["rows_tested"]
        verdicts[name] = report["verdict"]
    assert verdicts == expected
