"""A server of the V2 runner, its kernels interpreted on a CPU, is measured as an engine in this process is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support.served import ENVIRONMENT

from speceval.estimate import books
from speceval.store import StoredRun, read_run

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.long]

ASKED = ("--target", "zoo", "--draft", "lk-mtp", "--temp", "1", "--runner", "v2", "--batch", "1", "--limit", "3")


@pytest.fixture(scope="module")
def both(zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredRun, StoredRun]:
    """The same request in this process and through a server of its own."""
    root = tmp_path_factory.mktemp("served-v2")
    for name, more in (("offline", ()), ("served", ("--through-server",))):
        words = [*ASKED, "--max-tokens", "24", "--out", str(root / name), *more]
        command = [sys.executable, "-m", "speceval", "run", *words]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-4000:]
    return read_run(root / "offline"), read_run(root / "served")


def test_the_server_has_the_runner_that_was_asked_for_and_its_books_balance(both: tuple[StoredRun, StoredRun]) -> None:
    for run in both:
        engine = run.meta.fingerprint.engine
        assert (engine.runner, engine.device, run.meta.spec.runner) == ("V2", "cpu", "v2")
        (segment,) = run.meta.segments
        assert books.problems(run) == [] and segment.counters is not None
        assert segment.counters.steps_with_q == segment.counters.num_drafts > 0
        assert segment.counters.kernel_strays == 0


def test_tokens_steps_p_and_q_are_those_of_an_engine_in_this_process(both: tuple[StoredRun, StoredRun]) -> None:
    """Bit for bit, one request at a time: in larger batches sums depend on which requests share a step."""
    key = ["suite", "conversation", "seed", "turn", "step"]
    steps = [run.steps.sort_values(key, ignore_index=True) for run in both]
    pd.testing.assert_frame_equal(*steps, check_exact=True)
    assert steps[0].filter(like="ratio_").notna().any(axis=1).sum() > 15
    offline, served = (sorted((run.directory / "outputs.jsonl").read_text().splitlines()) for run in both)
    assert offline == served
    assert both[0].meta.fingerprint.patches == both[1].meta.fingerprint.patches
