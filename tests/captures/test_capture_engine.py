"""A capture made by vLLM, held against live replays of the same texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import machine

from speceval.estimate import replay
from speceval.store import StoredRun, read_run, recorded_columns

pytestmark = pytest.mark.engine

K = 3
DRAFTERS = {"lk-eagle3": {}, "lk-medusa": {}, "ngram": {"draft_args": {"prompt_lookup_min": 1, "prompt_lookup_max": 3}}}
WORK = """
import json, sys
import speceval

drafters, k = json.loads(sys.argv[1]), int(sys.argv[2])
asked = {"temperature": 1, "suites": ["demo"], "limit": 6, "max_tokens": 24}
free = speceval.run("zoo", "lk-eagle3", k=k, out="free", **asked)
speceval.capture(free, "capture", layers=[1, 2, 3])
for name, options in drafters.items():
    speceval.replay("capture", name, k=k, out=f"captured/{name}", **options)
    speceval.run("zoo", name, temperature=1, replay=free, k=k, batch=8, out=f"live/{name}", **options)
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captured and live replays of one run, by drafter; engines one after the other in one process."""
    from speceval.zoo import ensure

    ensure(tuple(name for name in DRAFTERS if name != "ngram"))
    folder = tmp_path_factory.mktemp("captured")
    command = [sys.executable, "-c", WORK, json.dumps(DRAFTERS), str(K)]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("draft", DRAFTERS)
def test_what_a_capture_keeps_is_what_a_live_replay_sees(measured: Path, draft: str) -> None:
    """Rounding differs, as batches do; n-gram drafts are the same to the last."""
    live, found = (read_run(measured / way / draft) for way in ("live", "captured"))
    assert_same(live, found, least=100 if draft == "ngram" else 300)
    differing = {
        name for name, value in live.meta.fingerprint.flat().items() if found.meta.fingerprint.flat().get(name) != value
    }
    assert {name.partition(".")[0] for name in differing} <= {"drafter", "engine"}
    assert {name for name in differing if name.startswith("engine")} <= {"engine.max_num_seqs", "engine.max_model_len"}


def assert_same(live: StoredRun, found: StoredRun, least: int) -> None:
    """Two replays of at least so many drafts keep the same."""
    names = recorded_columns(K, ("kept",))
    rows = [*replay.REQUEST, "step", "drafted", "accepted", "committed"]
    assert live.meta.problems == found.meta.problems == [] and live.steps[rows].equals(found.steps[rows])
    a, b = live.steps[names].to_numpy(), found.steps[names].to_numpy()
    assert (np.isnan(a) == np.isnan(b)).all()
    differ = np.abs(a - b)[~np.isnan(a)]
    assert (differ <= 1e-4).mean() >= 0.9999 and len(differ) > least
    totals = [replay.conversation_totals(run.steps).sum() for run in (live, found)]
    taus = [each["committed"] / each["steps"] for each in totals]
    assert taus[1] == pytest.approx(taus[0], abs=1e-3)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_on_v2_is_captured_and_replayed_to_what_v2_itself_keeps(tmp_path: Path) -> None:
    """The texts are read with the V1 runner: what the target says of a text does not depend on the runner."""
    zoo = ("--target", "zoo", "--draft", "lk-eagle3", "--temp", "1", "--k", str(K), "--runner", "v2")
    for words in (
        ("run", *zoo, "--limit", "6", "--max-tokens", "24", "--out", "free"),
        ("capture", "free", "-o", "capture"),
        ("replay", "capture", "--draft", "lk-eagle3", "--k", str(K), "-o", "captured"),
        ("run", *zoo, "--replay", "free", "--out", "live"),
    ):
        done = subprocess.run([sys.executable, "-m", "speceval", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr[-3000:])
    live, found = read_run(tmp_path / "live"), read_run(tmp_path / "captured")
    assert live.meta.fingerprint.engine.runner == "V2"
    assert_same(live, found, least=300)


@pytest.mark.slow
@pytest.mark.long
def test_suffix_drafts_are_those_of_an_engine_that_answers_one_request_at_a_time(tmp_path: Path) -> None:
    """Draft for draft, though what is drafted depends on every text before; the warm-up's is forgotten."""
    if machine.lacks_arctic_inference():
        pytest.skip("no arctic-inference")
    zoo, suffix = ("--target", "zoo", "--temp", "1"), ("--draft", "suffix", "--k", str(K))
    for words in (
        ("run", *zoo, "--draft", "lk-eagle3", "--k", "3", "--limit", "12", "--max-tokens", "48", "--out", "free"),
        ("capture", "free", "-o", "capture"),
        ("replay", "capture", *suffix, "-o", "captured"),
        ("run", *zoo, *suffix, "--replay", "free", "--batch", "1", "--out", "live"),
    ):
        done = subprocess.run([sys.executable, "-m", "speceval", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr[-3000:])
    live, found = (read_run(tmp_path / way) for way in ("live", "captured"))
    assert_same(live, found, least=100)
    names = recorded_columns(K, ("kept",))
    assert live.steps[names].equals(found.steps[names])
