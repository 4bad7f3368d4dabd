"""Tokens per second from acceptance and step time: what is told of bursts with a known answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from speceval.estimate.acceptance import TURN_COLUMNS
from speceval.estimate.tuning import Bursts, Setting, rates, stops_paying

ALONE = Setting("none", 0)
BURSTS = 8


def bursts(chance: float, k: int, step_ms: float, seed: int, noise: float = 0.02) -> Bursts:
    """Eight bursts of ten conversations of twenty steps each; every draft token is accepted with this chance."""
    rng = np.random.default_rng(seed)
    found = Bursts({4: []}, {4: []})
    for burst in range(BURSTS):
        accepted = (rng.random((200, k)) < chance).cumprod(axis=1).sum(axis=1) if k else np.zeros(200, int)
        conversation = [f"{burst}-{i}" for i in np.repeat(np.arange(10), 20)]
        steps = pd.DataFrame({"suite": "s", "conversation": conversation, "seed": 0, "turn": 1, "step": 1})
        steps = steps.assign(drafted=k, accepted=accepted, committed=accepted + 1)
        turns = pd.DataFrame(0, index=range(10), columns=TURN_COLUMNS)
        turns = turns.assign(
            suite="s", conversation=[f"{burst}-{i}" for i in range(10)], turn=1, finish_reason="length"
        )
        found.turns.append(turns)
        found.tables.append(steps)
        found.steps[4].append(200)
        found.seconds[4].append(200 * step_ms / 1000 * (1 + noise * rng.standard_normal()))
    return found


def expected(chance: float, k: int, step_ms: float) -> float:
    tau = sum(chance**j for j in range(k + 1))
    return (tau + 1 / 20) / step_ms * 1000


def test_the_rate_is_tokens_a_step_over_the_step_s_time() -> None:
    (rate,) = rates({Setting("a", 3): bursts(0.6, 3, 2.0, seed=1)})
    assert rate.low < expected(0.6, 3, 2.0) < rate.high and rate.high / rate.low < 1.1
    assert rate.step_ms == pytest.approx(2.0, rel=0.03) and rate.best and rate.as_good


def test_intervals_hold_the_answer_as_often_as_they_say() -> None:
    """95 %; that fewer than 86 of 100 hold it by chance alone has a probability below 1e-4 at 95 %, seeds are fixed."""
    held = sum(
        rate.low < expected(0.6, 3, 2.0) < rate.high
        for seed in range(100)
        for rate in rates({Setting("a", 3): bursts(0.6, 3, 2.0, seed)})
    )
    assert held >= 86


def test_the_best_and_what_is_not_significantly_worse_are_marked() -> None:
    measured = {
        Setting("a", 3): bursts(0.6, 3, 2.0, seed=1),
        Setting("same", 3): bursts(0.6, 3, 2.0, seed=2),
        Setting("slow", 7): bursts(0.6, 7, 4.0, seed=3),
        ALONE: bursts(0, 0, 1.5, seed=4),
    }
    found = {rate.setting.draft: rate for rate in rates(measured)}
    assert {name for name, rate in found.items() if rate.as_good} == {"a", "same"}
    assert sum(rate.best for rate in found.values()) == 1
    assert stops_paying(list(found.values())) is None


def test_speculation_that_costs_more_than_it_brings_does_not_pay() -> None:
    measured = {Setting("a", 3): bursts(0.3, 3, 4.0, seed=1), ALONE: bursts(0, 0, 1.0, seed=2)}
    assert stops_paying(rates(measured)) == 4
    assert stops_paying(rates({Setting("a", 3): measured[Setting("a", 3)]})) is None
