"""Speed-ups from timings, and the refusal to compare machines."""

import numpy as np
import pytest
from support.records import MACHINE

from speceval.errors import NotComparable
from speceval.estimate import speedup
from speceval.store.schema import Speedup


def timings(gain: float, blocks: int = 40, noise: float = 0.1, seed: int = 0, machine: str = "a") -> Speedup:
    """Blocks of unequal size on an engine that is `gain` times as fast as the target alone."""
    draw = np.random.default_rng(seed)
    rows = []
    for block in range(blocks):
        tokens, speed = int(draw.integers(20, 200)), 100 * np.exp(noise * draw.normal())
        rows.append(
            {
                "suite": "demo",
                "batch": 1,
                "block": block,
                "alone_tokens": tokens,
                "alone_seconds": tokens / speed,
                "drafted_tokens": tokens + 3,
                "drafted_seconds": (tokens + 3) / speed / gain * np.exp(0.02 * draw.normal()),
            }
        )
    made = {"machine": MACHINE | {"host": machine}, "batches": [1], "timings": rows}
    return Speedup.model_validate(made)


def test_a_speed_up_is_the_ratio_of_rates_and_its_interval_holds_it() -> None:
    found = speedup.summarise(timings(1.7))["demo"]["1"]
    assert found["low"] < 1.7 < found["high"] and found["blocks"] == 40
    assert found["value"] == pytest.approx(found["drafted_tokens_per_second"] / found["alone_tokens_per_second"])
    assert found["high"] - found["low"] < 0.1  # what slows both down cancels: 10 % of noise is in neither


def test_intervals_of_speed_ups_cover_95_percent() -> None:
    """False alarm below 1e-6: at 94 % true coverage fewer than 880 of 1000 are 8 standard deviations away."""
    draws = (speedup.summarise(timings(1.7, seed=seed))["demo"]["1"] for seed in range(1000))
    assert sum(found["low"] < 1.7 < found["high"] for found in draws) > 880


def test_two_speed_ups_of_one_machine_compare_with_their_errors() -> None:
    (row,) = speedup.compare(timings(1.5), timings(1.8, seed=1))
    assert row["relative_percent"]["low"] < 20 < row["relative_percent"]["high"]
    assert row["relative_percent"]["high"] - row["relative_percent"]["low"] < 5


def test_few_blocks_make_a_wider_difference() -> None:
    """8 blocks each, 1,000 differences of equal engines: with normal quantiles 90 % of intervals hold 0.

    False alarm below 1e-6 at 95.5 % true coverage, which Welch's freedom gives; normal quantiles miss it.
    """
    pairs = ((timings(1.5, 8, seed=2 * n), timings(1.5, 8, seed=2 * n + 1)) for n in range(1000))
    rows = [speedup.compare(a, b)[0]["relative_percent"] for a, b in pairs]
    assert sum(row["low"] < 0 < row["high"] for row in rows) > 920


@pytest.mark.parametrize("blocks", [(1, 8), (1, 1), (8, 1)])
def test_a_single_block_gives_a_difference_without_bounds(blocks: tuple[int, int]) -> None:
    (row,) = speedup.compare(timings(1.5, blocks[0]), timings(1.8, blocks[1], seed=1))
    change = row["relative_percent"]
    assert change["value"] == pytest.approx(20, abs=10) and (change["low"], change["high"]) == (None, None)


def test_the_number_in_flight_is_the_smaller_engine_s_weighted_by_time() -> None:
    made = timings(1.5, blocks=2)
    assert speedup.summarise(made)["demo"]["1"]["running"] is None  # of an earlier version
    changes = [{"drafted_running": 4.0, "alone_running": 3.0}, {"drafted_running": 2.0, "alone_running": 4.0}]
    rows = [row.model_copy(update=change) for row, change in zip(made.timings, changes, strict=True)]
    told = speedup.summarise(made.model_copy(update={"timings": rows}))["demo"]["1"]["running"]
    a, b = rows
    drafted = (4 * a.drafted_seconds + 2 * b.drafted_seconds) / (a.drafted_seconds + b.drafted_seconds)
    alone = (3 * a.alone_seconds + 4 * b.alone_seconds) / (a.alone_seconds + b.alone_seconds)
    assert told == pytest.approx(min(drafted, alone))


def test_speed_ups_of_two_machines_are_refused_naming_what_differs() -> None:
    with pytest.raises(NotComparable, match="host differ"):
        speedup.compare(timings(1.5), timings(1.5, machine="b"))


def test_what_only_one_run_timed_is_left_out() -> None:
    other = timings(1.5)
    rows = [row.model_copy(update={"suite": "gsm8k"}) for row in other.timings]
    assert speedup.compare(timings(1.5), other.model_copy(update={"timings": rows})) == []
