"""`--runner v2` from the command line: books, counters, recordings, and the same law as V1."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import live

from speceval.estimate import books, rao_blackwell
from speceval.store import StoredRun, read_run

pytestmark = [pytest.mark.slow, pytest.mark.engine]

DRAFT = "lk-mtp"


def speceval(log: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "speceval", *words]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=dict(os.environ))


def test_a_kernel_that_leaves_its_tensors_fails_the_run_that_it_was_seen_in(tmp_path: Path) -> None:
    """Planted in vLLM's own kernel, in the engine that runs."""
    request = ("run", "--target", "zoo", "--draft", DRAFT, "--temp", "1", "--runner", "v2", "--limit", "2")
    script = [sys.executable, str(Path(live.__file__).with_name("stray_run.py"))]
    environment = os.environ | live.V2 | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*script, *request, "--max-tokens", "8", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 1, done.stderr[-4000:]
    assert re.search(r"kernels read or wrote \d+ times outside their tensors", done.stderr + done.stdout)
    (segment,) = read_run(tmp_path / "run").meta.segments
    assert segment.counters is not None and segment.counters.kernel_strays > 0


@pytest.fixture(
    scope="module", params=[DRAFT, *(pytest.param(name, marks=pytest.mark.long) for name in ("lk-medusa", "lk-mlp"))]
)
def drafter(request: pytest.FixtureRequest) -> str:
    """Of vLLM's own drafters one; and ours."""
    return str(request.param)


@pytest.fixture(scope="module")
def runs(drafter: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredRun]:
    """The same request on V2 twice, and on V1."""
    root = tmp_path_factory.mktemp("runs")
    request = ("run", "--target", "zoo", "--draft", drafter, "--temp", "1", "--seeds", "0-3", "--batch", "64")
    plan = {"first": "v2", "again": "v2", "v1": "v1"}
    started = {
        name: speceval(root / f"{name}.log", *request, "--runner", runner, "--out", str(root / name))
        for name, runner in plan.items()
    }
    for name, process in started.items():
        assert process.wait(timeout=600) == 0, (root / f"{name}.log").read_text()[-4000:]
    return {name: read_run(root / name) for name in plan}


def test_books_balance_counters_are_filled_and_no_record_is_lost(runs: dict[str, StoredRun]) -> None:
    run = runs["first"]
    assert books.problems(run) == []
    (segment,) = run.meta.segments
    assert segment.counters is not None
    steps = int((run.steps["drafted"] > 0).sum())
    assert segment.counters.steps_with_q == segment.counters.num_drafts == steps
    assert segment.counters.steps_one_hot == segment.counters.steps_padded == segment.counters.kernel_strays == 0
    assert run.steps["ratio_1"].notna().sum() == steps


def test_the_runner_and_its_own_patches_are_on_the_record(drafter: str, runs: dict[str, StoredRun]) -> None:
    assert {name: run.meta.fingerprint.engine.runner for name, run in runs.items()} == {
        "first": "V2",
        "again": "V2",
        "v1": "V1",
    }
    heads = set() if drafter == DRAFT else {"v2-heads", "v2-custom-class"}
    own = {"cpu-rotary", "v2-draft-truncation", "v2-sampling-states"} | heads
    assert runs["first"].meta.fingerprint.patches == sorted(own)
    assert "v1-missing-q" in runs["v1"].meta.fingerprint.patches


def test_the_same_command_gives_the_same_tokens_again(runs: dict[str, StoredRun]) -> None:
    pd.testing.assert_frame_equal(runs["first"].steps, runs["again"].steps)


def test_both_runners_accept_alike_at_every_position(runs: dict[str, StoredRun]) -> None:
    """|z| < 5.5 in each of K + 1 comparisons: a false alarm in fewer than one of a million."""
    per_conversation = {name: [_rates(rows) for rows in _conversations(runs[name])] for name in ("first", "v1")}
    means = {name: np.mean(rates, axis=0) for name, rates in per_conversation.items()}
    spread = sum(np.var(rates, axis=0, ddof=1) / len(rates) for rates in per_conversation.values())
    z = (means["first"] - means["v1"]) / np.sqrt(spread)
    print(means, z)
    assert np.abs(z).max() < 5.5
    for run in (runs["first"], runs["v1"]):
        assert rao_blackwell.agreement(run.steps)["agrees"] is not False


def _conversations(run: StoredRun) -> list[Any]:
    return [rows for _, rows in run.steps.groupby(["conversation", "seed"])]


def _rates(steps: pd.DataFrame) -> list[float]:
    """Share of the steps that accept position 1, 2, …, and tau."""
    accepted = steps.loc[steps["drafted"] > 0, "accepted"]
    return [*(float((accepted >= j).mean()) for j in range(1, 6)), 1 + float(accepted.mean())]


def test_a_replay_on_v2_keeps_of_each_text_what_one_on_v1_keeps(
    drafter: str, runs: dict[str, StoredRun], tmp_path: Path
) -> None:
    """Given the text p and q are numbers, and no coin is thrown: the two agree step by step, up to rounding."""
    request = ("run", "--target", "zoo", "--draft", drafter, "--temp", "1", "--batch", "64")
    request += ("--replay", str(runs["first"].directory))
    started = {
        name: speceval(tmp_path / f"{name}.log", *request, "--runner", name, "--out", str(tmp_path / name))
        for name in ("v1", "v2")
    }
    for name, process in started.items():
        assert process.wait(timeout=600) == 0, (tmp_path / f"{name}.log").read_text()[-4000:]
    v1, v2 = (read_run(tmp_path / name) for name in started)
    assert v2.meta.fingerprint.engine.runner == "V2" and books.problems(v2) == []
    key = ["suite", "conversation", "seed", "turn", "step"]
    pd.testing.assert_frame_equal(
        v1.steps.sort_values(key, ignore_index=True), v2.steps.sort_values(key, ignore_index=True), atol=1e-4, rtol=0
    )


@pytest.mark.long
def test_a_run_on_v2_stops_when_tau_is_known(tmp_path: Path) -> None:
    rows = [{"turns": [f"Name {number} things that are red."], "category": "red"} for number in range(200)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = ("run", "--target", "zoo", "--draft", DRAFT, "--temp", "1", "--runner", "v2", "--batch", "64")
    asked = ("--suite", str(tmp_path / "own.jsonl"), "--max-tokens", "24", "--until", "12%")
    process = speceval(tmp_path / "log", *request, *asked, "--out", str(tmp_path / "run"))
    assert process.wait(timeout=600) == 0, (tmp_path / "log").read_text()[-4000:]
    run = read_run(tmp_path / "run")
    assert run.meta.fingerprint.engine.runner == "V2" and books.problems(run) == []
    assert run.meta.stopping is not None
    (suite,) = run.meta.stopping.suites.values()
    assert suite.outcome == "target reached" and 0 < suite.conversations < len(rows)
    assert len(run.turns) == suite.conversations


@pytest.mark.long
def test_verify_draws_without_speculation_first_and_then_on_v2(tmp_path: Path) -> None:
    """Where the target's law is not computed: its prompts are encoded before any engine, which brings Triton along."""
    request = ("verify", "--target", "zoo", "--draft", "lk-eagle3", "--runner", "v2", "--reference", "two-sample")
    process = speceval(tmp_path / "log", *request, "--samples", "100", "--n-tokens", "6", "--out", str(tmp_path / "v"))
    assert process.wait(timeout=600) == 2, (tmp_path / "log").read_text()[-4000:]  # a hundred are too few, and said so
    report = json.loads((tmp_path / "v" / "verify.json").read_text())
    assert report["engine"]["runner"] == "V2" and report["failed"] == 0 and report["rows_tested"]
