"""An endless watch: alarms without a fall are as rare as stated, a fall is seen soon, restarts are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from speceval.errors import UserError
from speceval.estimate.watching import LEAST_STEPS, MONTH, Detector, Slice, Slicer, learn, threshold
from speceval.store.schema import Counters

INTERVAL = 600.0
MONTHS, RATE = 40, 0.05
PER_MONTH = int(MONTH / INTERVAL)


def traffic(draw: np.random.Generator, slices: int, loss: float = 0.0) -> list[Slice]:
    """Slices of a server of four drafts a step: traffic and prompts change from slice to slice, `loss` is tau's."""
    steps = draw.poisson(draw.gamma(4, 500, slices)) + LEAST_STEPS
    tau = 2.5 * (1 - loss) * np.exp(draw.normal(0, 0.02, slices))
    accepted = draw.binomial(steps * 4, (tau - 1) / 4)
    return [
        Slice(INTERVAL * number, INTERVAL, int(n), int(4 * n), int(a), (int(a * 0.6), int(a * 0.4)))
        for number, (n, a) in enumerate(zip(steps, accepted, strict=True))
    ]


def first_alarm(detector: Detector, slices: list[Slice]) -> int | None:
    for number, one in enumerate(slices, start=1):
        detector.add(one)
        if detector.alarm:
            return number
    return None


def test_false_alarms_in_a_month_are_as_rare_as_stated_at_a_fall_of_just_the_margin() -> None:
    """The worst traffic that must raise none. Tested at 1e-6: more than `most` months with one are no chance."""
    draw, alarms = np.random.default_rng(20), 0
    for _ in range(MONTHS):
        detector = Detector(learn(traffic(draw, 60)), 0.02, threshold(RATE, INTERVAL))
        alarms += first_alarm(detector, traffic(draw, PER_MONTH, loss=0.02)) is not None
    most = int(stats.binom.ppf(1 - 1e-6, MONTHS, RATE))
    assert alarms <= most and most < MONTHS / 3


def test_a_fall_of_five_percent_is_seen_within_sixty_slices() -> None:
    draw = np.random.default_rng(21)
    for _ in range(30):
        detector = Detector(learn(traffic(draw, 60)), 0.02, threshold(RATE, INTERVAL))
        assert first_alarm(detector, traffic(draw, 200)) is None
        seen = first_alarm(detector, traffic(draw, 60, loss=0.05))
        assert seen is not None


def test_a_slice_of_few_steps_counts_for_less() -> None:
    draw = np.random.default_rng(22)
    learned = learn(traffic(draw, 60))
    low = replace(traffic(draw, 1, loss=0.1)[0])
    scores = []
    for share in (1, 10):
        detector = Detector(learned, 0.02, 1e9)
        detector.add(replace(low, steps=low.steps // share, accepted=low.accepted // share))
        scores.append(detector.score)
    assert scores[0] > scores[1]


def test_neighbours_that_are_alike_widen_what_is_learned() -> None:
    draw = np.random.default_rng(23)
    loose = traffic(draw, 200)
    alike = sorted(loose, key=lambda one: one.tau)
    assert learn(alike).spread > 2 * learn(loose).spread


def test_too_few_slices_teach_nothing() -> None:
    with pytest.raises(UserError, match="--learn 19: at least 20"):
        learn(traffic(np.random.default_rng(24), 19))


def test_totals_become_slices_and_a_restart_is_no_fall() -> None:
    slicer = Slicer()

    def at(steps: int, accepted: int, *positions: int) -> Slice | None:
        return slicer.take(Counters(steps, 4 * steps, accepted, list(positions)), float(steps))

    assert at(1000, 900, 600, 300) is None  # what was before the watch is not its own
    found = at(1200, 1100, 700, 400)
    assert found is not None and (found.steps, found.tau, found.positions) == (200, 2.0, (100, 100))
    assert at(1200 + LEAST_STEPS - 1, 1110, 705, 405) is None  # too little traffic: joined with what follows
    found = at(1300, 1200, 750, 450)
    assert found is not None and found.steps == 100
    assert at(10, 5, 5, 0) is None and slicer.restarts == 1
    found = at(110, 105, 60, 45)
    assert found is not None and found.steps == 100
