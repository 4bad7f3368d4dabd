"""Ctrl-C and SIGTERM end a run in order, whatever it is doing; what is finished is stored and the counters are held."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from speceval import interrupts
from speceval.estimate import books
from speceval.store import read_run

pytestmark = pytest.mark.slow


TESTS = Path(__file__).resolve().parent
INT, TERM = signal.SIGINT, signal.SIGTERM


def interrupted(
    out: Path, signals: Sequence[signal.Signals], seconds: float = 0.05, fault: str = ""
) -> tuple[int, str]:
    """Exit code and complaint of a run that gets these signals, 0.3 s apart, once it measures."""
    environment = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    command = [sys.executable, "-m", "support.slow_run", str(out), str(seconds), fault]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout and run.stdout.readline() == "measuring\n"
        for number in signals:
            run.send_signal(number)
            time.sleep(0.3)
        try:
            return run.wait(15), run.communicate()[1]
        finally:
            run.kill()


@pytest.mark.parametrize("signals", [[INT], [TERM], [INT, INT], [TERM, TERM], [INT, TERM], [INT, INT, INT]], ids=str)
@pytest.mark.parametrize("seconds", [0.02, 0.5], ids=["short steps", "long steps"])
def test_a_signal_ends_a_run_in_order_and_a_second_one_too(
    tmp_path: Path, signals: list[signal.Signals], seconds: float
) -> None:
    code, complaint = interrupted(tmp_path / "run", signals, seconds)
    assert code == 128 + signals[0] or (len(set(signals)) > 1 and code == 128 + signals[-1])
    assert "Traceback" not in complaint
    if len(signals) == 1:
        assert "interrupted:" in complaint and "the same command resumes" in complaint
        stored = read_run(tmp_path / "run")
        [stretch] = stored.meta.segments
        assert stretch.interrupted and stretch.counters is not None and stretch.unfinished_most is not None
        assert stretch.conversations == stored.conversations
        held = books.against_counters(stored.turns, stored.steps, [stretch], stored.meta.spec.k)
        assert held == []


@pytest.mark.parametrize("signals", [[INT], [TERM], [INT, INT]], ids=str)
def test_a_step_that_never_ends_is_left(tmp_path: Path, signals: list[signal.Signals]) -> None:
    started = time.monotonic()
    code, complaint = interrupted(tmp_path / "run", signals, fault="hang")
    assert code == 128 + signals[0] and "Traceback" not in complaint
    assert time.monotonic() - started < 12
    [stretch] = read_run(tmp_path / "run").meta.segments
    assert stretch.interrupted


def test_a_job_in_the_background_ignores_ctrl_c_as_its_shell_asked_and_obeys_sigterm(tmp_path: Path) -> None:
    code, complaint = interrupted(tmp_path / "run", [INT, TERM], fault="ignored")
    assert code == 128 + TERM and "interrupted:" in complaint and "Traceback" not in complaint
    [stretch] = read_run(tmp_path / "run").meta.segments
    assert stretch.counters is not None and stretch.unfinished_most is not None


def test_handlers_of_others_are_left_alone() -> None:
    def theirs(*_: object) -> None:
        """Somebody else's."""

    before = signal.signal(INT, theirs)
    try:
        with interrupts.deferred() as interrupt:
            assert signal.getsignal(INT) is theirs and not interrupt.between_steps
        assert signal.getsignal(INT) is theirs
    finally:
        signal.signal(INT, before)
