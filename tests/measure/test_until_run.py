"""`speceval run --until`: stops by the prefix of a random order, resumes to the same end, corrects its intervals."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.calling import caller

from speceval import cli, store
from speceval.engines.base import Sampling
from speceval.engines.simulated import SimulatedEngine
from speceval.estimate import acceptance
from speceval.estimate.identities import reconcile
from speceval.estimate.stopping import grid
from speceval.measure import until
from speceval.store import Store, StoredRun, read_run
from speceval.suites import load

SIZE = 200
TARGET = "3%"
ENGINE = ("--engine", "simulated", "--engine-arg", "end=0", "--temp", "1", "--batch", "8")
RUN = ("run", "--target", "zoo", "--draft", "lk-eagle3", *ENGINE)
WORSE = ("run", "--target", "zoo", "--draft", "kl-eagle3", *ENGINE, "--engine-arg", "rates=0.6")


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory with two suites. Every seventh request is ten times as long as the others, so that short
    conversations finish out of order.
    """
    submit = SimulatedEngine.submit

    def cut(self: SimulatedEngine, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        long = hashlib.sha256(request_id.encode()).digest()[0] % 7 == 0
        submit(self, request_id, prompt_token_ids, replace(sampling, max_tokens=80 if long else 8))

    monkeypatch.setattr(SimulatedEngine, "submit", cut)
    monkeypatch.chdir(tmp_path)
    for name, size in (("own", SIZE), ("other", 120)):
        rows = [{"turns": [f"question {n}", "and then?"], "category": f"c{n // 30}"} for n in range(size)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    return caller(monkeypatch, capfd)


def order(suite: str = "own.jsonl") -> list[str]:
    return [conversation.id for conversation in load(suite, shuffle_seed=until.SHUFFLE_SEED).conversations]


def tables(run: StoredRun) -> list[Any]:
    """Decision and data; what else was in flight at the end depends on when a run was killed."""
    assert run.meta.stopping is not None
    suites = {
        name: suite.model_dump(exclude={"behind", "tokens_saved"}) for name, suite in run.meta.stopping.suites.items()
    }
    return [suites, run.turns.to_dict("list"), run.steps.to_dict("list")]


def test_a_run_stops_when_tau_is_known_and_holds_the_prefix_of_a_random_order_and_nothing_else(call) -> None:
    code, out, err = call(*RUN, "--suite", "own.jsonl", "--until", TARGET, "--out", "run", "--json")
    assert code == 0, (out, err)
    run = read_run(Path("run"))
    found = run.meta.stopping.suites["own"]
    used = found.conversations
    assert found.outcome == "target reached" and used in grid(SIZE) and 80 <= used < SIZE
    assert found.half_width <= 0.03
    assert set(run.turns["conversation"]) == set(order()[:used]) and len(run.turns) == 2 * used
    assert run.turns["category"].nunique() == -(-SIZE // 30)  # file order would have given the first categories only
    assert run.meta.problems == [] and run.meta.spec.shuffle_seed == until.SHUFFLE_SEED
    assert reconcile(run.steps, run.turns) == []
    assert found.tokens == run.turns["output_tokens"].sum() and found.tokens_saved > 0


def test_the_books_balance_with_what_was_generated_behind_the_stopping_point(call) -> None:
    call(*RUN, "--suite", "own.jsonl", "--until", TARGET, "--out", "run")
    run = read_run(Path("run"))
    behind = run.meta.stopping.suites["own"].behind
    assert behind.tokens > 0
    generated = sum(segment.tokens for segment in run.meta.segments)
    assert generated == run.turns["output_tokens"].sum() + behind.tokens
    outputs = [json.loads(line) for line in Path("run/outputs.jsonl").read_text().splitlines()]
    assert {(row["conversation"], row["turn"]) for row in outputs} == {
        (row.conversation, row.turn) for row in run.turns.itertuples()
    }


def test_the_prefix_is_what_a_run_to_the_end_gives_for_the_same_conversations(call) -> None:
    call(*RUN, "--suite", "own.jsonl", "--until", TARGET, "--out", "run")
    call(*RUN, "--suite", "own.jsonl", "--out", "full")
    run, full = read_run(Path("run")), read_run(Path("full"))
    prefix = full.steps[full.steps["conversation"].isin(run.turns["conversation"])]
    assert run.steps.to_dict("list") == prefix.to_dict("list") and len(prefix) < len(full.steps)


@pytest.mark.slow
def test_a_run_killed_anywhere_resumes_to_the_same_decision(call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late kills hit the run while it finishes the turns in flight behind the stopping point."""
    arguments = (*RUN, "--suite", "own.jsonl", "--until", TARGET)
    original, steps, limit = SimulatedEngine.step, 0, 0

    def counting(self: SimulatedEngine) -> Any:
        nonlocal steps
        steps += 1
        if steps == limit:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(SimulatedEngine, "step", counting)
    call(*arguments, "--out", "whole")
    whole, total = tables(read_run(Path("whole"))), steps
    for cut in (3, total // 3, total // 2, total - 10, total):
        steps, limit, out = 0, cut, f"cut{cut}"
        assert call(*arguments, "--out", out)[0] == cli.EXIT_INTERRUPTED
        assert "unfinished" in call("show", out)[1]
        limit = 0
        assert call(*arguments, "--out", out)[0] == 0
        resumed = read_run(Path(out))
        if cut == total:  # the decision had been taken: there is nothing left to generate
            assert [segment.conversations for segment in resumed.meta.segments][1:] == [0]
        assert len(resumed.meta.segments) == 2 and resumed.meta.problems == []
        assert len(set(resumed.checked)) == 1
        assert tables(resumed) == whole, out


def test_looks_read_no_journal(call, monkeypatch: pytest.MonkeyPatch) -> None:
    """They follow what comes in: a run of many conversations would read it all at each of its looks."""
    looks, read = 0, 0
    decide, lines = until.decide_suite, store.read_lines

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal looks
        looks += 1
        return decide(*arguments, **named)

    def reading(*arguments: Any, **named: Any) -> Any:
        nonlocal read
        read += 1
        return lines(*arguments, **named)

    monkeypatch.setattr(until, "decide_suite", counting)
    for module in ("journal", "tables"):
        monkeypatch.setattr(f"speceval.store.{module}.read_lines", reading)
    call(*RUN, "--suite", "own.jsonl", "--until", "1%", "--out", "run")
    assert looks > 4 and read == 2  # when the store was opened, and at the end


def test_what_has_overtaken_an_unfinished_conversation_does_not_count(tmp_path: Path) -> None:
    order = [f"{n:03}" for n in range(100)]

    def line(n: int) -> dict[str, Any]:
        turn = {"turn": 1, "prompt_tokens": 5, "cached_tokens": 0, "token_ids": [1] * 9, "finish_reason": "stop"}
        steps = [(2, 1 + (n + i) % 2, 2 + (n + i) % 2) for i in range(2 + n % 3)]
        return {
            "suite": "s",
            "conversation": order[n],
            "seed": 0,
            "category": None,
            "turns": [{**turn, "steps": steps}],
        }

    with Store(tmp_path / "run") as opened:
        looks = until.Looks(until.Goal(0.5, {"s": order}, (0,)), opened)
        for n in range(1, 100):
            opened.append(line(n))
            looks.finished("s")
        assert looks.closed == set()
        opened.append(line(0))
        looks.finished("s")
        assert looks.closed == {"s"}


def test_all_seeds_of_a_conversation_are_one_unit(call) -> None:
    call(*RUN, "--suite", "own.jsonl", "--until", TARGET, "--seeds", "0-2", "--out", "run")
    run = read_run(Path("run"))
    used = run.meta.stopping.suites["own"].conversations
    assert used < SIZE and set(run.turns["conversation"]) == set(order()[:used])
    assert (run.turns.groupby("conversation")["seed"].nunique() == 3).all()


def test_every_suite_stops_by_itself_and_a_target_out_of_reach_runs_to_the_end(call) -> None:
    call(*RUN, "--suite", "own.jsonl,other.jsonl", "--until", TARGET, "--out", "run")
    suites = read_run(Path("run")).meta.stopping.suites
    assert suites["own"].outcome == "target reached" and suites["own"].conversations < SIZE
    call(*RUN, "--suite", "other.jsonl", "--until", "0.1%", "--out", "far")
    run = read_run(Path("far"))
    found = run.meta.stopping.suites["other"]
    assert (found.outcome, found.conversations, found.tokens_saved) == ("all conversations used", 120, 0)
    assert run.turns["conversation"].nunique() == 120


def test_show_gives_the_interval_that_is_corrected_for_the_looks(call) -> None:
    out = call(*RUN, "--suite", "own.jsonl", "--until", TARGET, "--out", "run")[1]
    run = read_run(Path("run"))
    found = run.meta.stopping.suites["own"]
    shown = json.loads(call("show", "run", "--json")[1])
    tau = shown["suites"]["own"]["tau"]
    assert found.confidence > 0.95 and len(found.looks) > 1
    assert (tau["high"] - tau["low"]) / 2 / tau["value"] == pytest.approx(found.half_width)
    plain = acceptance.summarise(run.steps, run.turns, run.meta.spec.k)["tau"]
    assert tau["high"] - tau["low"] > plain["high"] - plain["low"]
    assert shown["stopping"] == run.meta.stopping.model_dump(mode="json")
    line = f"own: target reached (± {100 * found.half_width:.2f} % of tau, asked: 3 %) after {found.conversations}"
    assert line in " ".join(out.split()) and call("show", "run")[1] == out


def test_a_difference_is_known_when_its_own_interval_is_narrow_enough(call) -> None:
    call(*RUN, "--suite", "own.jsonl", "--out", "base")
    new = (*WORSE, "--suite", "own.jsonl")
    code, _, err = call(*new, "--until", TARGET, "--against", "base", "--out", "run")
    assert code == 0, err
    run, base = read_run(Path("run")), read_run(Path("base"))
    found = run.meta.stopping.suites["own"]
    assert found.outcome == "target reached" and found.conversations < SIZE
    paired = acceptance.compare(base.steps, base.turns, run.steps, run.turns, confidence=found.confidence)
    assert found.value == pytest.approx(paired["relative_percent"]["value"])
    width = (paired["relative_percent"]["high"] - paired["relative_percent"]["low"]) / 2
    assert 100 * found.half_width == pytest.approx(width) and width <= 3
    assert f"of tau against {base.meta.name}" in " ".join(call("show", "run")[1].split())
    assert call(*new, "--until", TARGET, "--against", "base", "--out", "run")[0] == 0  # printed again


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--until", "1"), cli.EXIT_BAD_INPUT, "--until 1: not a percentage such as 1%"),
        (("--until", "much%"), cli.EXIT_BAD_INPUT, "--until much%: not a percentage"),
        (("--until", "0%"), cli.EXIT_BAD_INPUT, "--until: .*greater than 0"),
        (("--until", "nan%"), cli.EXIT_BAD_INPUT, "--until: "),
        (("--against", "base"), cli.EXIT_BAD_INPUT, "give --until too"),
        (("--until", "1%", "--against", "nothing"), cli.EXIT_BAD_INPUT, "nothing: no run here"),
        (
            ("--until", "1%", "--against", "base", "--suite", "other.jsonl"),
            cli.EXIT_BAD_INPUT,
            "no conversation of other",
        ),
        (("--until", "1%", "--against", "base", "--max-tokens", "9"), 3, "suites.own.max_tokens"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_leaves_nothing(
    call, arguments: tuple[str, ...], code: int, says: str
) -> None:
    call(*RUN, "--suite", "own.jsonl", "--limit", "20", "--out", "base")
    suite = () if "--suite" in arguments else ("--suite", "own.jsonl")
    found, _, err = call(*RUN, *suite, *arguments, "--out", "run")
    lines = [line for line in err.splitlines() if not line.startswith("starting simulated")]
    assert found == code and len(lines) == 1 and re.search(says, lines[0]), (found, err)
    assert not (Path("run") / "run.json").exists()
