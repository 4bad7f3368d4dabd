"""What is timed: which conversations, in which order, and with how many in flight."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from speceval.engines.base import Order
from speceval.engines.simulated import SimulatedEngine
from speceval.errors import UserError
from speceval.measure import timing
from speceval.measure.job import Job, prepare
from speceval.suites import Conversation, Suite


def suite(size: int, categories: int = 1) -> Suite:
    conversations = [
        Conversation(id=str(number), category=f"c{number * categories // size}", turns=["hello", "and?"])
        for number in range(size)
    ]
    return Suite("demo", 1, "hash", conversations, 64, None, "{prompt}", "here")


def test_any_part_of_the_order_has_its_share_of_every_category() -> None:
    """MT-Bench's file has its eighty questions category by category: the first 64 hold none of the last."""
    order = timing.in_order(suite(80, categories=8))
    assert sorted(one.id for one in order) == sorted(str(number) for number in range(80))
    for size in (8, 16, 40, 64):
        counts = Counter(one.category for one in order[:size])
        assert len(counts) == 8 and max(counts.values()) - min(counts.values()) <= 1
    assert order == timing.in_order(suite(80, categories=8)) and order != suite(80, categories=8).conversations


def test_categories_of_one_conversation_are_spread_too() -> None:
    """Half of 400 are of one category, the others each of its own: about half of any hundred are of such.

    A hundred of two hundred places at random hold 28 to 72 of a kind with all but 1e-6; the middle would hold all.
    """
    alone = [replace(one, category=one.id) for one in suite(400).conversations[::2]]
    made = replace(suite(400), conversations=[*suite(400).conversations[1::2], *alone])
    order = timing.in_order(made)
    for start in range(0, 400, 100):
        assert 28 <= sum(one.category == one.id for one in order[start : start + 100]) <= 72


@pytest.mark.parametrize(
    ("size", "batch", "blocks"), [(80, 1, 64), (80, 5, 16), (80, 32, 8), (80, 80, 8), (1319, 16, 64)]
)
def test_any_batch_that_the_suite_can_fill_has_blocks_enough(size: int, batch: int, blocks: int) -> None:
    timing.check([suite(size)], [batch])
    assert timing.blocks(suite(size), batch) == blocks


def test_a_batch_that_the_suite_cannot_fill_is_refused_before_any_engine_starts(tmp_path: Path) -> None:
    job = Job(None, None, None, [suite(20)], tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="20 conversations, at batch 21 at least 21 are needed"):
        timing.measure(job, (21,), tmp_path / "log")
    with pytest.raises(UserError, match="7 conversations, at batch 1 at least 8"):
        timing.check([suite(7)], [1])
    assert not any(tmp_path.iterdir())


class Counting(SimulatedEngine):
    """Notes at each step how many requests it holds."""

    held: list[int]

    def step(self) -> Any:
        self.held.append(len(self._waiting) + len(self._running))
        return super().step()


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_the_batch_is_full_at_every_step_that_is_timed(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of very different lengths: a block that is waited for drains, half of it on average."""
    opened: list[Counting] = []

    def make(order: Order) -> Counting:
        engine = Counting.open(order)
        engine.held = []
        opened.append(engine)
        return engine

    monkeypatch.setattr(timing, "start_engine", lambda job: make(timing.order(job)))
    monkeypatch.setattr(timing.engines, "open", make)
    job = prepare(
        target="zoo", draft="lk-eagle3", temperature=1.0, suite_names=["demo"], k=3, engine="simulated",
        engine_args={"end": 0.05}, out=tmp_path,
    )  # fmt: skip
    job = timing.replace(job, suites=[suite(16)])
    rows, steps = [], 0
    for row in timing.time_blocks(job, [batch]):
        rows.append(row)
        steps = [len(engine.held) for engine in opened]
    assert len(rows) == max(16 // batch, 8) and all(row.drafted_tokens and row.alone_tokens for row in rows)
    assert {row.drafted_running for row in rows} | {row.alone_running for row in rows} == {batch}
    for engine, before_the_drain in zip(opened, steps, strict=True):
        assert set(engine.held[:before_the_drain]) == {batch}
        assert len(engine._running) == len(engine._waiting) == 0


def test_a_large_batch_goes_around_with_other_seeds() -> None:
    job = prepare(target="zoo", draft="lk-eagle3", temperature=1.0, suite_names=["demo"], k=3, engine="simulated")
    engine = SimulatedEngine.open(timing.order(job))
    lives = list(islice(timing.Stream(engine, job, suite(3), 2)._endless(), 7))
    assert [live.seed for live in lives] == [0, 0, 0, 1, 1, 1, 2]
    assert len({live.request_id for live in lives}) == 7


def test_a_suite_that_does_not_fit_the_context_is_one_line_and_no_endless_loop() -> None:
    job = prepare(
        target="zoo", draft="lk-eagle3", temperature=1.0, suite_names=["demo"], k=3, engine="simulated",
        engine_args={"max_model_len": 20},
    )  # fmt: skip
    engine = SimulatedEngine.open(timing.order(job))
    with pytest.raises(UserError, match="no conversation of demo could be generated"):
        timing.Stream(engine, job, suite(3), 2).run(4)
