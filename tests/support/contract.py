"""What every engine must do: `python contract.py NAME RESULT` holds the engine NAME to it in a process of its own.

RESULT, JSON: for each of ASSERTIONS "" or the traceback of what it found. Three engines are started one after another.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speceval import catalog, engines
from speceval.engines.base import Engine, Finished, Order, Sampling
from speceval.errors import UserError
from speceval.estimate.identities import check_counters, reconcile
from speceval.measure import chat
from speceval.measure.start import check_settings
from speceval.protocol import RunSpec
from speceval.store import frames
from speceval.store.schema import Counters, Facts, PatchState

K = 4
TEXTS = ("Where is the cat?", "Täglich 12 €, 你好, 😀\u202e!", "a", "What does the dog do in the garden at night?")


class Rig:
    """One engine under test: what is asked of it, and a running one that assertions share."""

    def __init__(self, name: str) -> None:
        kind = engines.find(name)
        kind.require()
        pair = catalog.resolve("zoo", "lk-eagle3")
        if kind.loads_checkpoints:
            pair = catalog.fetch(pair)
        self.order = Order(
            name, pair.target, pair.draft, K, "probabilistic", 1.0, batch=3, seed=7, record=True,
            engine_args=kind.defaults(pair.target),
        )  # fmt: skip
        self._running: Engine | None = None

    @property
    def engine(self) -> Engine:
        """A warm engine for `order`."""
        if self._running is None:
            self._running = engines.open(self.order)
            self._running.warm_up()
        return self._running

    @contextmanager
    def another(self, order: Order) -> Iterator[Engine]:
        """An engine of its own, after the shared one is gone: a device may have room for one."""
        self.close()
        with closing(engines.open(order)) as engine:
            yield engine

    def close(self) -> None:
        """The shared engine is gone."""
        if self._running is not None:
            self._running.close()
            self._running = None


def sampling(max_tokens: int = 40, seed: int = 0, temperature: float = 1.0) -> Sampling:
    return Sampling(temperature, 1.0, 0, max_tokens, seed)


def prompt(engine: Engine, text: str) -> list[int]:
    return chat.render(engine.tokenizer, [{"role": "user", "content": text}], {})


def finish(engine: Engine, requests: dict[str, tuple[list[int], Sampling]]) -> dict[str, Finished]:
    """Run the requests to their ends."""
    for name, (tokens, how) in requests.items():
        engine.submit(name, tokens, how)
    finished: dict[str, Finished] = {}
    while len(finished) < len(requests):
        finished |= {one.request_id: one for one in engine.step()[1]}
    return finished


def some(engine: Engine, copies: int = 3) -> dict[str, tuple[list[int], Sampling]]:
    """Requests of different prompts, lengths and seeds, more than run at once."""
    return {
        f"{number}-{copy}": (prompt(engine, text), sampling(max_tokens=1 + 9 * copy + number, seed=copy))
        for number, text in enumerate(TEXTS)
        for copy in range(copies)
    }


def tables(
    finished: dict[str, Finished], requests: dict[str, tuple[list[int], Sampling]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The store's tables of turns and steps, each request being a conversation of one turn."""
    lines = [
        {
            "suite": "s",
            "conversation": name,
            "seed": 0,
            "category": None,
            "turns": [
                {
                    "turn": 1,
                    "prompt_tokens": len(requests[name][0]),
                    "cached_tokens": one.cached_tokens,
                    "padded_steps": one.padded_steps,
                    "token_ids": one.token_ids,
                    "finish_reason": one.finish_reason,
                    "steps": [(step.drafted, step.accepted, step.committed) for step in one.steps],
                }
            ],
        }
        for name, one in finished.items()
    ]
    return frames(lines)


# ------------------------------------------------------------------------------------------------ with one engine


def test_its_facts_are_complete_and_typed(rig: Rig) -> None:
    facts = rig.engine.facts()
    assert Facts.model_validate(facts.model_dump(), strict=True) == facts
    assert facts.device and facts.runner and facts.method and facts.method != "none"
    assert (facts.max_model_len or rig.engine.max_model_len) == rig.engine.max_model_len > 100


def test_it_resolved_what_was_asked(rig: Rig) -> None:
    spec = RunSpec(target="t", draft="d", k=K, temperature=1.0, drafting="probabilistic", suites=("s",))
    check_settings(rig.engine.facts(), spec)
    assert rig.engine.missing_patches() == []
    assert all(isinstance(patch, PatchState) for patch in rig.engine.patches())


def test_its_counters_are_the_sums_of_its_steps(rig: Rig) -> None:
    before, requests = rig.engine.counters(), some(rig.engine)
    finished = finish(rig.engine, requests)
    turns, steps = tables(finished, requests)
    counted = rig.engine.counters().minus(before)
    assert counted.num_drafts > 10 and 0 < counted.num_accepted_tokens < counted.num_draft_tokens
    assert check_counters(steps, asdict(counted.without_padding(int(turns["padded_steps"].sum()), K))) == []


def test_its_counters_do_not_move_while_nothing_runs(rig: Rig) -> None:
    assert rig.engine.counters() == rig.engine.counters()
    assert rig.engine.counters().minus(rig.engine.counters()) == Counters(num_accepted_tokens_per_pos=[0] * K)


def test_the_evidence_that_it_promises_is_given_and_adds_up(rig: Rig) -> None:
    assert rig.engine.evidence == "steps", "the identities below are those of steps"
    requests = some(rig.engine)
    finished = finish(rig.engine, requests)
    assert finished.keys() == requests.keys()
    turns, steps = tables(finished, requests)
    assert reconcile(steps, turns) == []
    assert all(one.steps for one in finished.values() if len(one.token_ids) > 1)


def test_what_the_verifier_saw_is_kept_for_every_step_of_sampled_requests_alone(rig: Rig) -> None:
    requests = some(rig.engine) | {"greedy": (prompt(rig.engine, TEXTS[0]), sampling(temperature=0.0))}
    finished = finish(rig.engine, requests)
    assert finished.pop("greedy").recorded is None
    recorded = [one.recorded for one in finished.values() if len(one.token_ids) > 1]
    drafted = [sum(step.drafted > 0 for step in one.steps) for one in finished.values() if len(one.token_ids) > 1]
    for seen, steps in zip(recorded, drafted, strict=True):
        assert seen is not None and seen.shape == (steps, 2, K) and seen.dtype == np.float32
        assert ((seen >= 0) & (seen <= 1 + 1e-4)).all()


def test_what_is_in_flight_is_told_step_by_step(rig: Rig) -> None:
    for name, (tokens, how) in some(rig.engine, copies=2).items():
        rig.engine.submit(name, tokens, how)
    told, ended, left = 0, 0, 8
    while left:
        committed, finished = rig.engine.step()
        told, left = told + committed, left - len(finished)
        ended += sum(len(one.token_ids) for one in finished)
        assert told == ended + sum(sum(commits) for commits in rig.engine.in_flight())
    assert [commits for commits in rig.engine.in_flight() if commits] == []


def test_a_seed_gives_the_same_tokens_again_and_another_seed_others(rig: Rig) -> None:
    """One request at a time: in a full batch the last digits may depend on the company."""
    tokens = prompt(rig.engine, TEXTS[3])
    once, again = (finish(rig.engine, {"r": (tokens, sampling(seed=5))})["r"] for _ in range(2))
    assert (once.token_ids, once.steps) == (again.token_ids, again.steps)
    others = [finish(rig.engine, {"r": (tokens, sampling(seed=seed))})["r"].token_ids for seed in (6, 7, 8)]
    assert any(other != once.token_ids for other in others)


def test_a_request_ends_at_its_limit_or_says_that_it_stopped(rig: Rig) -> None:
    requests = some(rig.engine)
    for name, one in finish(rig.engine, requests).items():
        limit = requests[name][1].max_tokens
        assert one.finish_reason in ("stop", "length") and 1 <= len(one.token_ids) <= limit
        assert len(one.token_ids) == limit or one.finish_reason == "stop"
    one = finish(rig.engine, {"one": (prompt(rig.engine, TEXTS[0]), sampling(max_tokens=1))})["one"]
    assert len(one.token_ids) == 1 and one.steps == []


def test_any_text_is_a_prompt_and_an_answer_is_text(rig: Rig) -> None:
    texts = ["€ 你好 😀\u202e\x00", " ", "'; DROP TABLE", "\n\n", "x" * 60]
    finished = finish(rig.engine, {text: (prompt(rig.engine, text), sampling(max_tokens=8)) for text in texts})
    for one in finished.values():
        answer = rig.engine.tokenizer.decode(one.token_ids)
        assert isinstance(answer, str) and answer.encode("utf-8", "surrogatepass")


def test_a_prompt_that_is_too_short_is_refused_in_one_line_and_nothing_is_queued(rig: Rig) -> None:
    assert rig.engine.shortest_prompt >= 1
    for length in range(rig.engine.shortest_prompt):
        assert "\n" not in refusal(lambda length=length: rig.engine.submit("short", [5] * length, sampling()))
    assert finish(rig.engine, {"next": (prompt(rig.engine, TEXTS[0]), sampling(max_tokens=2))}).keys() == {"next"}
    assert rig.engine.in_flight() == []


# ------------------------------------------------------------------------------------------------ with others


def test_a_closed_engine_takes_nothing_more_and_can_be_closed_again_and_a_second_one_does_the_same(rig: Rig) -> None:
    tokens = prompt(rig.engine, TEXTS[3])
    first = rig.engine
    expected = finish(first, {"r": (tokens, sampling(seed=5))})["r"].token_ids
    first.submit("left", tokens, sampling())
    first.step()
    rig.close()
    first.close()
    try:
        first.submit("r", tokens, sampling())
    except RuntimeError as error:
        assert str(error) == "the engine is closed"
    else:
        raise AssertionError("a closed engine took a request")
    with rig.another(replace(rig.order, record=False)) as second:
        one = finish(second, {"r": (tokens, sampling(seed=5))})["r"]
    assert one.token_ids == expected and one.recorded is None


def test_a_text_that_a_request_brings_is_emitted_a_token_at_a_time_with_its_record(rig: Rig) -> None:
    source = finish(rig.engine, some(rig.engine, copies=2))
    with rig.another(replace(rig.order, record=False, replay=True)) as engine:
        requests = {
            name: (tokens, replace(how, max_tokens=len(text), replay=text))
            for name, (tokens, how) in some(engine, copies=2).items()
            for text in [tuple(source[name].token_ids)]
        }
        finished = finish(engine, requests)
    for name, one in finished.items():
        text = source[name].token_ids
        assert one.token_ids == text and [step.committed for step in one.steps] == [1] * (len(text) - 1)
        if len(text) > 1:
            assert one.recorded is not None and one.recorded.shape in ((len(text) - 1, kinds, K) for kinds in (2, 5))
            left = np.arange(len(text) - 1, 0, -1)[:, None]
            assert (np.isnan(one.recorded[:, 0]) == (np.arange(K) >= left)).all()


def test_the_target_alone_drafts_nothing(rig: Rig) -> None:
    with rig.another(rig.order.alone()) as alone:
        facts = alone.facts()
        assert (facts.method, facts.k) == ("none", 0)
        finished = finish(alone, some(alone))
        assert all(step.drafted == step.accepted == 0 for one in finished.values() for step in one.steps)
        assert all(sum(step.committed for step in one.steps) + 1 == len(one.token_ids) for one in finished.values())
        assert (alone.counters().num_drafts, alone.counters().num_accepted_tokens) == (0, 0)


def test_an_order_that_it_cannot_meet_is_refused_in_one_line(rig: Rig) -> None:
    rig.close()
    impossible = replace(rig.order, engine_args=rig.order.engine_args | {"no_such_argument": 1})
    assert "no_such_argument" in (line := refusal(lambda: engines.open(impossible))) and "\n" not in line


def refusal(call: Any) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    raise AssertionError("not refused")


ASSERTIONS = {name.removeprefix("test_"): check for name, check in list(globals().items()) if name.startswith("test_")}
"""In the order in which they are to run: those that need an engine of their own come last."""


def hold(name: str) -> dict[str, str]:
    """What each assertion found; nothing where the engine keeps it."""
    found: dict[str, str] = {}
    rig = Rig(name)
    with closing(rig):
        for assertion, check in ASSERTIONS.items():
            try:
                check(rig)
                found[assertion] = ""
            except Exception:
                found[assertion] = traceback.format_exc()
    return found


def main(arguments: Sequence[str]) -> None:
    name, result = arguments
    Path(result).write_text(json.dumps(hold(name)))


if __name__ == "__main__":
    main(sys.argv[1:])
