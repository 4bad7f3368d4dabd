"""Tokens per second from acceptance and step time: what is told of bursts with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from speceval.estimate.tuning import ALONE, Burst, Measured, Rate, Setting, Tried, rates, schedule, stops_paying

BURSTS, STEPS, BATCH = 8, 256, 4
SLOT = 0.5
"""Milliseconds of a request's step of the target alone."""
LENGTH = 60
"""Tokens of an answer: the prefill's, and as many as its steps bring."""


def answers(tau: float, seed: int, conversations: int = 24) -> pd.DataFrame:
    """Conversations of three answers each, whose acceptance differs by a tenth."""
    own = np.random.default_rng(seed).normal(1, 0.1, conversations) * tau
    table = pd.DataFrame({"tokens": 3 * LENGTH, "turns": 3}, index=[f"c{i}" for i in range(conversations)])
    return table.assign(steps=3 * (LENGTH - 1) / own)


def bursts(slower: float, rng: np.random.Generator, noise: float, drift: float) -> list[Burst]:
    """Of a setting whose steps take `slower` times the target's; the machine takes `drift` times as long for both."""
    own, alone = (drift * SLOT / 1000 * STEPS * (1 + noise * rng.standard_normal(BURSTS)) for _ in range(2))
    return [Burst(slower * a, STEPS, b, STEPS) for a, b in zip(own, alone, strict=True)]


def measured(
    settings: dict[Setting, tuple[float, float]], seed: int, noise: float = 0.02, drift: float = 0.0
) -> Measured:
    """`settings`: tau and slowness of each. The machine's speed at each visit is log-normal with `drift`."""
    rng = np.random.default_rng(seed)
    found = Measured()
    for setting, (tau, slower) in settings.items():
        speed = math.exp(drift * rng.standard_normal())
        found.tried[setting] = Tried(answers(tau, seed), {BATCH: bursts(slower, rng, noise, speed)})
    return found


def gained(tau: float) -> float:
    """Tokens a step, the prefill's counted."""
    return LENGTH / (1 + (LENGTH - 1) / tau)


A, B, C = Setting("a", 3), Setting("b", 3), Setting("c", 7)


def test_the_rate_is_tokens_a_step_over_the_step_s_time() -> None:
    rate, alone = rates(measured({A: (2.4, 1.5)}, seed=1))
    assert alone.setting == ALONE and alone.value == pytest.approx(1000 / SLOT, rel=0.02)
    assert rate.speedup[1] < gained(2.4) / 1.5 < rate.speedup[2] and rate.speedup[2] / rate.speedup[1] < 1.15
    assert rate.value == pytest.approx(rate.speedup[0] * alone.value)
    assert rate.tau == pytest.approx(2.4, rel=0.05) and rate.step_ms == pytest.approx(BATCH * 1.5 * SLOT, rel=0.03)


def held(seeds: range, drift: float) -> tuple[int, int]:
    """How often the true speed-up, and the true rate at the machine's median speed, lie within their intervals."""
    ratio = rate = 0
    settings = {Setting("a", k): (2.0, 1.0 + k / 8) for k in range(1, 7)}
    truth = gained(2.0) / settings[Setting("a", 3)][1]
    for seed in seeds:
        found = next(r for r in rates(measured(settings, seed, drift=drift)) if r.setting == Setting("a", 3))
        ratio += found.speedup[1] < truth < found.speedup[2]
        rate += found.low < truth * 1000 / SLOT < found.high
    return ratio, rate


def test_intervals_hold_the_answer_as_often_as_they_say_whatever_the_machine_does_meanwhile() -> None:
    """95 %; that fewer than 84 of 100 hold it by chance alone has a probability of 2e-5 at 95 %, seeds are fixed.

    A drift of 20 % between visits is in the rate's interval and cancels in the speed-up's.
    """
    for drift in (0.0, 0.2):
        ratio, rate = held(range(100), drift)
        assert ratio >= 84 and rate >= 84
    found = rates(measured({Setting("a", k): (2.0, 1.5) for k in range(1, 7)}, 0, drift=0.2))[0]
    assert found.high / found.low > 1.2 > found.speedup[2] / found.speedup[1]


def test_without_the_target_beside_them_its_two_visits_tell_the_drift() -> None:
    found = measured({A: (2.4, 1.5)}, seed=1)
    found.tried[A].bursts[BATCH] = [Burst(b.seconds, b.steps) for b in found.tried[A].bursts[BATCH]]
    visit = [Burst(SLOT / 1000 * STEPS, STEPS)] * BURSTS
    slow = [Burst(1.3 * burst.seconds, STEPS) for burst in visit]
    found.alone[BATCH] = [visit, visit]
    steady = rates(found)[0]
    assert steady.speedup[1] < gained(2.4) / 1.5 < steady.speedup[2] < 1.2 * steady.speedup[1]
    found.alone[BATCH] = [visit, slow]
    assert rates(found)[0].speedup[2] > 1.5 * rates(found)[0].speedup[1]


def test_noise_that_lasts_longer_than_a_burst_is_in_the_interval() -> None:
    """A step takes 1.2 times the target's in one half of the bursts and 1.6 in the other: 32 bursts are no 32 units."""
    found = measured({A: (2.4, 1.4)}, seed=1)
    halves = [1.2 if number < 16 else 1.6 for number in range(32)]
    slot = SLOT / 1000 * STEPS
    found.tried[A].bursts[BATCH] = [Burst(slower * slot, STEPS, slot, STEPS) for slower in halves]
    low, high = rates(found)[0].speedup[1:]
    assert low < gained(2.4) / 1.6 and gained(2.4) / 1.2 < high


def test_the_best_and_what_is_not_significantly_worse_are_marked() -> None:
    found = {rate.setting: rate for rate in rates(measured({A: (2.4, 1.3), B: (2.4, 1.3), C: (2.4, 2.6)}, seed=1))}
    assert {setting for setting, rate in found.items() if rate.as_good} == {A, B}
    assert sum(rate.best for rate in found.values()) == 1
    assert stops_paying(list(found.values())) is None


def test_what_two_settings_have_in_common_is_no_doubt_about_their_difference() -> None:
    """The conversations differ by far more than the settings; both read the same ones."""
    found = {r.setting: r for r in rates(measured({A: (2.4, 1.3), B: (2.3, 1.3)}, seed=1, noise=0.002))}
    assert found[A].speedup[1] < found[B].speedup[2]  # the intervals overlap
    assert found[A].best and not found[B].as_good


def test_speculation_that_costs_more_than_it_brings_does_not_pay() -> None:
    assert stops_paying(rates(measured({A: (1.4, 4.0)}, seed=1))) == BATCH


def ranges(best: dict[int, int]) -> list[tuple[int, int, int]]:
    """The schedule where these K are the best at these batch sizes."""
    none = {"speedup": (1.0, 1.0, 1.0), "tau": 1.0, "step_ms": 1.0, "time": None, "gain": None}
    found = [
        Rate(Setting("a", k) if k else ALONE, batch, 2.0 if k == top else 1.0, 0.0, 9.0, **none)  # type: ignore[arg-type]
        for batch, top in best.items()
        for k in (0, 2, 5)
    ]
    return schedule([*found, Rate(Setting("other", 9), min(best), 99.0, 0.0, 999.0, **none)], "a")  # type: ignore[arg-type]


def test_k_follows_the_batch_size_without_gaps() -> None:
    assert ranges({1: 5, 4: 5, 16: 2, 64: 0}) == [(1, 8, 5), (9, 32, 2), (33, 64, 0)]
    assert ranges({8: 5}) == [(1, 8, 5)]
