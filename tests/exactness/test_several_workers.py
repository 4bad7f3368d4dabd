"""Recorder, replay and `verify` where the sampling is done by other processes, and by two workers at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from support.pairs import PROMPTS, write_pair

from speceval.estimate import acceptance, rao_blackwell, replay
from speceval.store import StoredRun, read_run

pytestmark = [pytest.mark.slow, pytest.mark.engine]

ENGINE_ARGS = ("dtype=float32", "enforce_eager=true", "max_model_len=256")
TWO = ("--engine-arg", "tensor_parallel_size=2")
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "another process": ("1", ()),
    "two workers": ("0", TWO),
    "another process, V2": ("1", ("--runner", "v2")),
    "two workers, V2": ("0", ("--runner", "v2", *TWO)),
}
"""VLLM_ENABLE_V1_MULTIPROCESSING, and options."""
ROW_TESTS = {"accepted", "drafts", "favoured", "recovered"}


@dataclass(frozen=True)
class Results:
    free: StoredRun
    replayed: StoredRun
    report: dict[str, Any]
    workers: int


@pytest.fixture(
    scope="module", params=[pytest.param(case, marks=[pytest.mark.long] * (case != "two workers")) for case in CASES]
)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A sampled run, the same drafter along its texts, and a verification."""
    root = tmp_path_factory.mktemp("workers")
    target, draft = write_pair(root, "eagle3-cut")
    words = [{"turns": [prompt]} for prompt in (*PROMPTS, "1 8 8 20", "6 6 2")]
    (root / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in words))
    pair = ("--target", target, "--draft", draft, "--k", "4", "--temp", "1")
    processes, options = CASES[request.param]
    engine = [*options, *(part for argument in ENGINE_ARGS for part in ("--engine-arg", argument))]

    def speceval(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "speceval", *arguments, *engine],
            cwd=root,
            env=os.environ
            | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
            | {"VLLM_ENABLE_V1_MULTIPROCESSING": processes},
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 2), done.stderr[-3000:]  # 2: verify was not asked for enough to be sure

    suite = ("--suite", str(root / "words.jsonl"), "--seeds", "0-19", "--max-tokens", "24", "--batch", "32")
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    free = ("run", *pair, *suite, "--out", "free")
    verify = ("verify", *pair, *prompts, "--samples", "1500", "--out", "verify")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda words: speceval(*words), (free, verify)))
    speceval("run", *pair, *suite, "--out", "replayed", "--replay", "free")
    report = json.loads((root / "verify" / "verify.json").read_text())
    return Results(read_run(root / "free"), read_run(root / "replayed"), report, 2 if TWO[1] in options else 1)


def test_verify_makes_every_row_test_and_finds_no_bias(results: Results) -> None:
    """False alarms of the whole verification < 1e-6."""
    report = results.report
    assert report["verdict"] != "biased" and report["missing"] == [], report["line"]
    assert report["rows_tested"]
    kinds = {check["kind"] for check in report["checks"] if check["where"] == "all drafts" and "p" in check}
    assert kinds == ROW_TESTS
    drafts = next(c["n"] for c in report["checks"] if (c["kind"], c["where"]) == ("accepted", "all drafts"))
    assert drafts > 8000  # every draft that was reached, heard once: not once by each worker
    assert drafts < 12000


def test_every_step_has_a_record_that_agrees_with_the_counts(results: Results) -> None:
    """|z| < 5: a false alarm of 6e-7."""
    free = results.free
    assert free.meta.problems == []
    found = rao_blackwell.agreement(free.steps)
    assert found["steps"] == len(acceptance.drafted_steps(free.steps)) > 300 and found["agrees"] is True
    counters = free.meta.segments[0].counters
    assert counters is not None and counters.steps_with_q == found["steps"] and counters.steps_one_hot == 0
    assert free.meta.fingerprint.engine.tensor_parallel == results.workers


def test_a_replay_emits_the_texts_and_records_what_would_be_kept(results: Results) -> None:
    free, replayed = results.free, results.replayed
    assert replayed.meta.problems == [] and replay.unrecorded(replayed.steps) == 0

    def tokens(run: StoredRun) -> list[Any]:
        rows = [json.loads(line) for line in (run.directory / "outputs.jsonl").open(encoding="utf-8")]
        return sorted((row["conversation"], row["seed"], row["token_ids"]) for row in rows)

    assert tokens(replayed) == tokens(free)
    assert (replayed.steps["committed"] == 1).all() and (replayed.steps["accepted"] == 0).all()
