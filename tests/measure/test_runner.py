"""Conversations through an engine with a known answer."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.records import run_meta

from speceval.engines.simulated import SimulatedEngine
from speceval.estimate import acceptance
from speceval.estimate.identities import check_counters, reconcile
from speceval.measure.runner import Progress, Template, measure, plan, prompts_hash
from speceval.protocol import RunSpec, make_spec
from speceval.store import Store, read_run
from speceval.store.schema import Segment
from speceval.suites import Conversation, Suite

RATES = (0.8, 0.6, 0.5)
TEMPLATE = Template({}, None)


def suite(count: int = 12, turns: int = 2, name: str = "s") -> Suite:
    conversations = [Conversation(f"{i:02}", "c", [f"question {i}.{t}" for t in range(turns)]) for i in range(count)]
    return Suite(name, 1, "hash", conversations, 60, None, "{prompt}", "made here")


def spec(**changes: object) -> RunSpec:
    fields = {
        "target": "t", "draft": "d", "k": 3, "temperature": 1.0, "drafting": "probabilistic", "suites": ("s",),
        "seeds": (0, 1), "batch": 4,
    }  # fmt: skip
    return make_spec(**{**fields, **changes})


def run(directory: Path, engine: SimulatedEngine, spec: RunSpec, suites: list[Suite]) -> tuple[Segment, Progress]:
    progress = Progress(len(plan(suites, spec)))
    with Store(directory) as store:
        asked = {f"spec__{name}": value for name, value in spec}
        store.write_meta(run_meta(status="running", **asked))
        segment = measure(engine, spec, suites, TEMPLATE, store, progress, lambda: None)
        store.finish(run_meta(**asked))
    return segment, progress


def test_every_turn_of_every_conversation_and_seed_is_stored_and_the_books_balance(tmp_path: Path) -> None:
    segment, progress = run(tmp_path, SimulatedEngine(RATES), spec(), [suite()])
    stored = read_run(tmp_path)
    assert len(stored.turns) == 12 * 2 * 2 and stored.conversations == progress.done == 24
    assert reconcile(stored.steps, stored.turns) == []
    assert check_counters(stored.steps, asdict(segment.counters)) == []
    assert segment.tokens == progress.tokens == int(stored.turns["output_tokens"].sum())


def test_the_known_acceptance_comes_back(tmp_path: Path) -> None:
    """9,000 steps; |z| > 6 has a false-alarm rate below 1e-8 a rate."""
    run(tmp_path, SimulatedEngine(RATES, end=0.0), spec(seeds=tuple(range(20))), [suite(count=10)])
    positions = acceptance.positions(read_run(tmp_path).steps, 3)
    for row, rate in zip(positions.itertuples(), RATES, strict=True):
        error = (rate * (1 - rate) / row.reached) ** 0.5
        assert abs(row.conditional - rate) < 6 * error


def test_the_next_turn_sees_the_answer_that_was_given(tmp_path: Path) -> None:
    prompts: dict[str, list[str]] = {}

    class Recorder(SimulatedEngine):
        def submit(self, request_id: str, prompt_token_ids: list[int], sampling: object) -> None:
            prompts.setdefault(request_id, []).append("".join(map(chr, prompt_token_ids)))
            super().submit(request_id, prompt_token_ids, sampling)

    run(tmp_path, Recorder(RATES), spec(), [suite(count=1)])
    outputs = {row["seed"]: row for row in map(__import__("json").loads, (tmp_path / "outputs.jsonl").open())}
    assert len(prompts) == 2
    for (first, second), seed in zip(prompts.values(), (0, 1), strict=True):
        assert first == "user: question 0.0\n"
        assert second.startswith(first + "assistant: ") and second.endswith("\nuser: question 0.1\n")
        assert outputs[seed]["turn"] == 2
        assert len(second) > len(first) + len("assistant: \nuser: question 0.1\n")


def test_a_row_s_own_system_prompt_is_sent_and_counts_as_part_of_the_prompts(tmp_path: Path) -> None:
    prompts: list[str] = []

    class Recorder(SimulatedEngine):
        def submit(self, request_id: str, prompt_token_ids: list[int], sampling: object) -> None:
            prompts.append("".join(map(chr, prompt_token_ids)))
            super().submit(request_id, prompt_token_ids, sampling)

    own = replace(suite(count=1, turns=1), conversations=[Conversation("0", None, ["q"], "Answer in French.")])
    without = replace(own, conversations=[Conversation("0", None, ["q"])])
    run(tmp_path, Recorder(RATES), spec(seeds=(0,)), [own])
    assert prompts == ["system: Answer in French.\nuser: q\n"]
    hashes = {prompts_hash(SimulatedEngine(RATES), [each], TEMPLATE) for each in (own, without)}
    assert len(hashes) == 2


def test_a_resumed_run_holds_the_same_conversations_as_an_uninterrupted_one(tmp_path: Path) -> None:
    class Interrupted(SimulatedEngine):
        steps_left = 25

        def step(self):
            self.steps_left -= 1
            if self.steps_left < 0:
                raise KeyboardInterrupt
            return super().step()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Interrupted(RATES), spec(), [suite()])
    cut = read_run(tmp_path / "cut")
    assert not cut.complete and 0 < cut.conversations < 24
    segment, _ = run(tmp_path / "cut", SimulatedEngine(RATES), spec(), [suite()])
    assert segment.conversations == 24 - cut.conversations
    run(tmp_path / "whole", SimulatedEngine(RATES), spec(), [suite()])
    resumed, whole = read_run(tmp_path / "cut"), read_run(tmp_path / "whole")
    assert resumed.turns.equals(whole.turns) and resumed.steps.equals(whole.steps)


def test_a_turn_that_does_not_fit_the_context_is_skipped_and_said(tmp_path: Path) -> None:
    engine = SimulatedEngine(RATES, end=0.0, max_model_len=120)
    _, progress = run(tmp_path, engine, spec(seeds=(0,)), [suite(count=3)])
    stored = read_run(tmp_path)
    assert progress.done == 3 and len(stored.turns) == 3  # the second turns are too long
    assert [line.skipped.split(" needs")[0] for line in stored.meta.skipped] == ["turn 2"] * 3


def test_at_temperature_0_requests_carry_no_seed(tmp_path: Path) -> None:
    seen = []

    class Recorder(SimulatedEngine):
        def submit(self, request_id: str, prompt_token_ids: list[int], sampling) -> None:
            seen.append(sampling)
            super().submit(request_id, prompt_token_ids, sampling)

    run(tmp_path, Recorder(RATES), spec(temperature=0, drafting="greedy", seeds=(0,)), [suite(count=2, turns=1)])
    assert [sampling.seed for sampling in seen] == [None, None]


def test_the_engine_is_never_left_with_an_empty_slot_while_conversations_are_due(tmp_path: Path) -> None:
    class Watched(SimulatedEngine):
        lowest = 99

        def step(self):
            self.lowest = min(self.lowest, len(self._waiting) + len(self._running)) if len(seen) < 60 else self.lowest
            return super().step()

        def submit(self, request_id: str, prompt_token_ids: list[int], sampling) -> None:
            seen.append(request_id)
            super().submit(request_id, prompt_token_ids, sampling)

    seen: list[str] = []
    engine = Watched(RATES, batch=4)
    run(tmp_path, engine, spec(seeds=(0,), batch=4), [suite(count=60, turns=1)])
    assert engine.lowest >= 4
