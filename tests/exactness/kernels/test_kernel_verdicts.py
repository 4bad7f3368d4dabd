"""The kernel verifier end to end, on the installed vLLM: right kernels are exact, wrong ones are seen."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from speceval.exactness import kernels
from speceval.exactness.law import Verdict

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
MUTANTS = Path(__file__).parents[2] / "support" / "kernel_mutants.py"
FAST = [
    "target without temperature",
    "q of another request",
    "noise shared by draft and residual",
    "residual abs(p - q) instead of max(0, p - q)",
    "bonus token from the row before",
    "greedy requests accept every draft",
    "padding does not end the step",
]
RIGHT = ["unchanged V1 probabilistic", "unchanged V2 probabilistic", "unchanged V2 padded"]


def run(names: list[str], requests: int) -> dict[str, dict[str, object]]:
    """`kernel_mutants.py` in a process of its own: name -> what it found."""
    command = [sys.executable, str(MUTANTS), "--n", str(requests), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["name"]: row for row in found}


@pytest.mark.slow
def test_mutants_of_vllms_code_are_biased_and_the_code_itself_is_not() -> None:
    found = run([*FAST, *RIGHT], 20_000)
    assert sorted(found) == sorted([*FAST, *RIGHT])
    assert {name: found[name]["verdict"] for name in FAST} == dict.fromkeys(FAST, Verdict.biased)
    # 20,000 requests cannot call anything exact; nothing may be called biased (false alarm: 3 x 5e-9)
    assert {found[name]["verdict"] for name in RIGHT} == {Verdict.unsettled}


@pytest.mark.slow
@pytest.mark.long
def test_the_other_mutants_are_biased_and_the_code_is_exact_at_the_default_sample_size() -> None:
    found = run(["--except", *FAST], kernels.REQUESTS)
    wrong = {name: row["verdict"] for name, row in found.items() if not name.startswith("unchanged")}
    assert len(wrong) > 10
    assert set(wrong.values()) == {Verdict.biased}, wrong
    right = {name: row["verdict"] for name, row in found.items() if name.startswith("unchanged")}
    assert set(right.values()) == {Verdict.exact}, right


@pytest.mark.slow
def test_every_cell_agrees_with_tritons_interpreter_token_by_token() -> None:
    pytest.importorskip("triton")
    frame = kernels.run_kernels(["installed"], n=200, check=1)
    triton = frame[(frame["engine"] == "simt") & frame["tv"].notna()]
    assert len(triton) >= 6
    assert set(triton["checked"]) == {1}, triton[["runner", "drafting", "rejection", "note"]].to_string()
    assert set(triton["strays"]) == {0}


@pytest.mark.slow
def test_patched_runs_refuse_biased_block_verification() -> None:
    frame = kernels.run_kernels(["installed"], patched=True, n=200, check=0)
    block = frame[frame["rejection"] == "block"]
    expected = "refused" if block["version"].iloc[0].startswith(("0.29", "0.30", "0.31", "0.32")) else Verdict.unsettled
    assert set(block["verdict"]) == {expected}
    assert set(frame["verdict"]) <= {"refused", Verdict.unsettled}
    assert not math.isnan(frame["tv"].iloc[0])
