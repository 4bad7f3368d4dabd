"""`speceval verify` on live engines: exact with the patches, biased without and for every mutant it is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import live
from support.pairs import PROMPTS, write_pair

pytestmark = [pytest.mark.slow, pytest.mark.engine]

ENVIRONMENT = live.ENVIRONMENT | {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
}
ENGINE_ARGS = ("dtype=float32", "enforce_eager=true", "max_model_len=256")
MUTANTS = (
    "temperature dropped by the verifier",
    "q from the row before",
    "residual without q: p",
    "bonus from the row before",
    "greedy and sampled rows mixed up",
)
RUNS: dict[str, Any] = {
    "exact": {"settings": {"samples": 4000, "bias": 0.04}},
    "truncated": {
        "asked": {"top_k": 8, "top_p": 0.9, "temperature": 0.7},
        "settings": {"samples": 1500, "bias": 0.04, "seeded": True, "greedy_share": 0.25},
    },
    **{name: {"mutant": name, "settings": {"samples": 1200}} for name in MUTANTS},
}


def command(target: str, draft: str, *options: str) -> list[str]:
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    engine = [part for argument in ENGINE_ARGS for part in ("--engine-arg", argument)]
    return [
        sys.executable,
        "-m",
        "speceval",
        "verify",
        "--target",
        target,
        "--draft",
        draft,
        *prompts,
        *engine,
        *options,
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Reports of RUNS on one patched engine, and `stock`: the command's result without patches; both at once."""
    root = tmp_path_factory.mktemp("verify")
    target, draft = write_pair(root, "eagle3-cut")
    (root / "job.json").write_text(json.dumps({"target": target, "draft": draft, "k": 4, "runs": RUNS}))
    script = Path(__file__).parents[1] / "support" / "engine_verify.py"
    patched = subprocess.Popen(
        [sys.executable, script, root / "job.json", root / "result.json"],
        env=os.environ | ENVIRONMENT | {"SPECEVAL_PATCHES": "1"},
        stdout=(root / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        stock = subprocess.run(
            command(target, draft, "--k", "4", "--samples", "600", "--json", "--out", str(root / "stock")),
            env=os.environ | ENVIRONMENT | {"SPECEVAL_PATCHES": "0"},
            capture_output=True,
            text=True,
        )
        assert patched.wait(timeout=600) == 0, (root / "log").read_text()[-4000:]
    finally:
        patched.kill()
    reports: dict[str, Any] = json.loads((root / "result.json").read_text())
    return reports | {"stock": stock, "directory": root / "stock"}


def test_the_patched_engine_is_exact(found: dict[str, Any]) -> None:
    """4000 continuations: a bias of verified tokens of 0.03 would have been seen; every slot was tested."""
    report = found["exact"]
    assert report["verdict"] == "exact", report["line"]
    assert report["missing"] == [] and report["untested"] == []
    assert report["smallest_bias"] < 0.04


def test_acceptance_by_position_is_the_overlap_of_p_and_q(found: dict[str, Any]) -> None:
    """|z| < 6 at each of four positions and over all, 15,000 cases at the first, 1,000 at the last."""
    accepted = [check for check in found["exact"]["checks"] if check["kind"] == "accepted"]
    assert [check["where"] for check in accepted] == [*(f"draft {j}" for j in range(1, 5)), "all drafts"]
    assert all(abs(check["z"]) < 6 for check in accepted)
    assert accepted[0]["n"] > 10000 and accepted[3]["n"] > 500


def test_truncated_seeded_and_partly_greedy_requests_show_no_bias(found: dict[str, Any]) -> None:
    report = found["truncated"]
    assert report["failed"] == 0, report["line"]
    greedy = next(check for check in report["checks"] if check["kind"] == "greedy")
    assert (greedy["n"], greedy["observed"]) == (375, 0)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(found: dict[str, Any], name: str) -> None:
    """1200 continuations, a seventeenth of the default; results/verify/mutants.csv has all mutants at the default."""
    assert found[name]["verdict"] == "biased", found[name]["line"]


def test_the_stock_engine_is_biased_and_the_command_says_what_is_missing(found: dict[str, Any]) -> None:
    stock = found["stock"]
    assert stock.returncode == 1, stock.stderr[-2000:]
    report = json.loads(stock.stdout)
    assert report["verdict"] == "biased"
    assert any(line.startswith("cpu-expand: switched off") for line in report["missing"])
    assert "verify: drawing" in stock.stderr and "Traceback" not in stock.stderr
    assert json.loads((found["directory"] / "verify.json").read_text()) == report
