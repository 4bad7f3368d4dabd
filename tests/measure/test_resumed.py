"""An interrupted run is held against the engine's counters, stretch by stretch, and says where there are none."""

from __future__ import annotations

import html
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from speceval import cli, engines, store
from speceval.engines.base import Counters, Finished
from speceval.engines.simulated import SimulatedEngine
from speceval.errors import UserError
from speceval.measure.stretch import account_for, unfinished
from speceval.show.report.audits import audit
from speceval.store import StoredRun, read_run
from speceval.store.schema import Segment

RUN = ("run", "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1", "--suite", "own.jsonl", "--batch", "4")
RUN = (*RUN, "--engine", "own", "--out", "run")
CONVERSATIONS = 40


class Engine(SimulatedEngine):
    """Every step of it lost q, so that there is a counter to add up. `at[n]` happens before its step n."""

    at: ClassVar[dict[int, Callable[[], None]]] = {}
    steps_taken = 0

    def step(self) -> tuple[int, list[Finished]]:
        type(self).steps_taken += 1
        type(self).at.pop(type(self).steps_taken, lambda: None)()
        return super().step()

    def counters(self) -> Counters:
        counted = super().counters()
        return replace(counted, steps_one_hot=counted.num_drafts)


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Engine]:
    """The engine that `speceval run` drives in this working directory, to be given `at` and other methods."""

    class Own(Engine):
        at: ClassVar[dict[int, Callable[[], None]]] = {}

    monkeypatch.setattr(sys.modules[__name__], "Own", Own, raising=False)
    monkeypatch.setitem(engines.BUILT_IN, "own", f"{__name__}:Own")
    monkeypatch.chdir(tmp_path)
    rows = [{"turns": [f"question {n}", "and then?"], "category": "c"} for n in range(CONVERSATIONS)]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Own


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["speceval", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        out, err = capfd.readouterr()
        return code, out + err

    return run


def resumed(call: Callable[..., tuple[int, str]], code: int = 0) -> StoredRun:
    """The run after a last call that finishes it."""
    ended, printed = call(*RUN)
    assert ended == code, printed
    return read_run(Path("run"))


def value(run: StoredRun, name: str) -> str:
    return next(one.value for one in audit(run) if one.name == name)


def test_every_stretch_of_a_run_that_ctrl_c_interrupted_is_in_its_record_and_balances(call, engine) -> None:
    engine.at = {60: ctrl_c, 150: ctrl_c}
    assert call(*RUN)[0] == call(*RUN)[0] == cli.EXIT_INTERRUPTED
    assert [segment.interrupted for segment in read_run(Path("run")).meta.segments] == [True, True]
    run = resumed(call)
    segments = run.meta.segments
    assert [segment.interrupted for segment in segments] == [True, True, False] and run.meta.problems == []
    assert all(segment.conversations > 0 for segment in segments) and run.checked == (CONVERSATIONS, CONVERSATIONS)
    assert [segment.first for segment in segments] == [0, segments[0].conversations, 40 - segments[2].conversations]
    generated = sum(segment.tokens for segment in segments)
    assert generated > run.turns["output_tokens"].sum()  # the conversations in flight were generated twice
    assert "held against" not in call("show", "run")[1]
    assert call("validate", "run") == (0, "run: ok\n")


def test_the_audits_of_a_resumed_run_tell_of_all_its_stretches(call, engine) -> None:
    engine.at = {60: ctrl_c, 150: ctrl_c}
    call(*RUN), call(*RUN)
    run = resumed(call)
    names = ", ".join(str(segment.conversations) for segment in run.meta.segments)
    assert value(run, "resumed") == f"3 stretches: {names} conversations"
    counted = sum(segment.counters.num_drafts for segment in run.meta.segments if segment.counters)
    assert counted > run.meta.segments[-1].counters.num_drafts
    assert value(run, "steps that lost q") == f"100 % ({counted:,} of {counted:,} counted steps)"
    assert f"{counted:,} of {counted:,} steps had lost q" in call("show", "run")[1]


def fewer_told(engine: type[Engine], while_lying: Callable[[], bool]) -> None:
    """Its outputs tell of one accepted token too few in each request, consistently, while it lies."""
    honest = engine.step

    def lying(result: Finished) -> Finished:
        steps = list(result.steps)
        for index, step in enumerate(steps):
            if step.accepted and step.committed > 1 and while_lying():
                steps[index] = replace(step, accepted=step.accepted - 1, committed=step.committed - 1)
                return replace(result, steps=steps, token_ids=result.token_ids[:-1])
        return result

    def step(self: Engine) -> tuple[int, list[Finished]]:
        committed, finished = honest(self)
        return committed, [replace(lying(result), recorded=None) for result in finished]

    engine.step = step  # type: ignore[method-assign]


def fewer_counted(engine: type[Engine], while_lying: Callable[[], bool]) -> None:
    """Its counters tell of one accepted token too few in each request that finishes while it lies."""
    honest_step, honest_counters = engine.step, engine.counters
    requests = 0

    def step(self: Engine) -> tuple[int, list[Finished]]:
        nonlocal requests
        committed, finished = honest_step(self)
        requests += len(finished) * while_lying()
        return committed, finished

    def counters(self: Engine) -> Counters:
        counted = honest_counters(self)
        return replace(counted, num_accepted_tokens=counted.num_accepted_tokens - requests)

    engine.step, engine.counters = step, counters  # type: ignore[method-assign]


@pytest.mark.parametrize("lie", [fewer_told, fewer_counted])
@pytest.mark.parametrize("stretch", [1, 2])
def test_an_engine_that_tells_or_counts_one_token_too_few_a_request_is_caught_in_any_stretch(
    call, engine, lie: Callable[..., None], stretch: int
) -> None:
    begun = 0
    honest = engine.warm_up

    def warm_up(self: Engine) -> None:
        nonlocal begun
        begun += 1
        honest(self)

    engine.warm_up = warm_up
    lie(engine, lambda: begun == stretch)
    engine.at = {90: ctrl_c}
    assert call(*RUN)[0] == cli.EXIT_INTERRUPTED
    run = resumed(call, code=1)
    assert run.meta.status == "inconsistent" and run.meta.problems
    assert [line for line in run.meta.problems if f"stretch {stretch} of 2: num_accepted_tokens" not in line] == []


def test_ctrl_c_is_obeyed_when_the_engine_has_told_what_it_counted(call, engine) -> None:
    """The signal comes at the end of a step, after everything was counted and before anything was told."""
    honest = engine.step

    def step(self: Engine) -> tuple[int, list[Finished]]:
        told = honest(self)
        if self.steps_taken == 90:
            signal.raise_signal(signal.SIGINT)
        return told

    engine.step = step
    handler = signal.getsignal(signal.SIGINT)
    assert call(*RUN)[0] == cli.EXIT_INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is handler
    (segment,) = read_run(Path("run")).meta.segments
    assert segment.interrupted and segment.unfinished_most is not None
    run = resumed(call)
    assert run.meta.problems == [] and run.checked == (CONVERSATIONS, CONVERSATIONS)


def twice() -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    pytest.fail("the second Ctrl-C did not stop the step")


def broken() -> None:
    raise UserError("vLLM failed while generating")


@pytest.mark.parametrize(("ending", "code"), [(twice, cli.EXIT_INTERRUPTED), (broken, cli.EXIT_BAD_INPUT)])
def test_a_step_that_is_broken_off_leaves_a_lower_bound(call, engine, ending: Callable[[], None], code: int) -> None:
    engine.at = {90: ending}
    assert call(*RUN)[0] == code
    (segment,) = read_run(Path("run")).meta.segments
    assert segment.interrupted and segment.counters and segment.unfinished_least and not segment.unfinished_most
    run = resumed(call)
    assert run.meta.problems == [] and run.checked == (CONVERSATIONS, CONVERSATIONS)


def test_a_lower_bound_catches_counters_that_lack_a_token(call, engine) -> None:
    fewer_counted(engine, lambda: True)
    engine.at = {90: broken}
    assert call(*RUN)[0] == cli.EXIT_BAD_INPUT
    run = resumed(call, code=1)
    assert "stretch 1 of 2: num_accepted_tokens" in run.meta.problems[0] and " or more" in run.meta.problems[0]


def test_an_engine_that_failed_and_does_not_answer_leaves_no_counters(
    call, engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as failing:
        honest = engine.counters
        failing.setattr(engine, "counters", lambda self: honest(self) if self.steps_taken < 90 else broken())
        engine.at = {90: broken}
        assert call(*RUN)[0] == cli.EXIT_BAD_INPUT
    (segment,) = read_run(Path("run")).meta.segments
    assert segment.counters is None and segment.conversations > 0
    assert resumed(call).checked == (CONVERSATIONS - segment.conversations, CONVERSATIONS)


KILLED = """
import os, signal, sys
sys.path[:0] = [sys.argv[1], sys.argv.pop(1) + '/..']
from pathlib import Path
from test_resumed import Engine
from speceval import cli, engines
engines.BUILT_IN["own"] = "test_resumed:Engine"
Engine.at = {90: lambda: os.kill(os.getpid(), signal.SIGKILL)}
cli.main()
"""


def test_after_kill_9_the_run_says_for_how_many_conversations_there_was_nothing_to_hold_against(call, engine) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent), *RUN], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (begun,) = read_run(Path("run")).meta.segments
    assert (begun.counters, begun.interrupted, begun.conversations) == (None, True, 0)
    lost = read_run(Path("run")).conversations
    engine.at = {engine.steps_taken + 60: ctrl_c}
    assert call(*RUN)[0] == cli.EXIT_INTERRUPTED
    run = resumed(call)
    assert lost > 0 and run.meta.segments[0].conversations == lost and run.meta.problems == []
    assert len(run.meta.segments) == 3 and run.checked == (CONVERSATIONS - lost, CONVERSATIONS)
    line = f"{CONVERSATIONS - lost} of {CONVERSATIONS} conversations were held against the engine's counters"
    assert line in call("show", "run")[1]
    assert line in value(run, "resumed") and next(one for one in audit(run) if one.name == "resumed").attention
    assert call("validate", "run") == (0, "run: ok\n")
    told = json.loads(call("show", "run", "--json")[1])["checked_conversations"]
    assert told == {"checked": CONVERSATIONS - lost, "measured": CONVERSATIONS}
    assert call("report", "run", "-o", "page.html")[0] == 0 and line in html.unescape(Path("page.html").read_text())


def test_a_run_that_an_earlier_version_began_keeps_what_it_had_uncounted(call, engine) -> None:
    engine.at = {90: ctrl_c}
    call(*RUN)
    record = json.loads(Path("run/run.json").read_text())
    lost = record["segments"][0]["conversations"]
    Path("run/run.json").write_text(json.dumps(record | {"segments": []}))
    run = resumed(call)
    assert run.checked == (CONVERSATIONS - lost, CONVERSATIONS) and run.meta.problems == []


def test_a_run_that_an_earlier_version_resumed_says_what_it_had_checked(call, engine) -> None:
    run = resumed(call)
    record = json.loads(Path("run/run.json").read_text())
    record["segments"][0].pop("began")
    assert record["segments"][0].keys() == {"conversations", "tokens", "seconds", "counters"}
    record["segments"][0]["conversations"] = 30
    Path("run/run.json").write_text(json.dumps(record))
    assert read_run(Path("run")).checked == (30, CONVERSATIONS) != run.checked
    assert "30 of 40 conversations were held against the engine's counters" in call("show", "run")[1]


def test_a_disk_that_is_full_on_the_way_out_does_not_hide_why(call, engine, monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.write_meta

    def full(directory: Path, meta: Any) -> None:
        if meta.segments and meta.segments[-1].conversations:
            raise OSError(28, "No space left on device")
        original(directory, meta)

    engine.at = {90: ctrl_c}
    with monkeypatch.context() as patched:
        patched.setattr("speceval.store.journal.write_meta", full)
        assert call(*RUN)[0] == cli.EXIT_INTERRUPTED
    checked, measured = resumed(call).checked
    assert 0 < checked < measured == CONVERSATIONS


def test_the_record_is_written_when_a_stretch_begins_and_ends_and_not_between(
    call, engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    original = store.write_meta

    def counting(directory: Path, meta: Any) -> None:
        written.append(len(meta.segments))
        original(directory, meta)

    monkeypatch.setattr("speceval.store.journal.write_meta", counting)
    resumed(call)
    assert written == [0, 1, 1, 1]  # opened, begun, ended, finished


def segment(conversations: int, first: int, counters: Counters | None = None) -> Segment:
    return Segment(conversations=conversations, tokens=0, seconds=0.0, counters=counters, first=first)


@pytest.mark.parametrize(
    ("segments", "stored", "conversations"),
    [
        ([], 0, []),
        ([], 5, [5]),
        ([segment(0, 0)], 5, [5]),
        ([segment(5, 0, Counters())], 5, [5]),
        ([segment(5, 0, Counters()), segment(0, 5)], 5, [5, 0]),
        ([segment(5, 0, Counters()), segment(0, 5)], 9, [5, 4]),
    ],
)
def test_every_stored_conversation_belongs_to_a_stretch(
    segments: list[Segment], stored: int, conversations: list[int]
) -> None:
    assert [one.conversations for one in account_for(segments, stored)] == conversations


def test_what_unfinished_conversations_counted_is_known_within_the_steps_of_one_token() -> None:
    """By hand, K = 3: a finished turn of two steps and a padded one; in flight a prefill and steps of 3, 1 and 4."""
    turn = {"steps": [(3, 2, 3), (0, 0, 1), (2, 0, 1)], "padded_steps": 1}
    least, most = unfinished([turn], [[1, 3, 1, 4], []], k=3)
    assert least == Counters(3 + 2, 8 + 5, 2 + 5, [1 + 2, 1 + 2, 0 + 1], steps_padded=1)
    assert most == Counters(3 + 4, 8 + 12, 2 + 5, [1 + 2, 1 + 2, 0 + 1], steps_padded=2)
