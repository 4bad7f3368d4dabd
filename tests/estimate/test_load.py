"""Times under load: the definitions of `vllm bench serve`, and intervals that hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_docs import script

from speceval.estimate import load


def turns(rows: list[tuple[str, int, float, float, int, int]], **more: Any) -> pd.DataFrame:
    """Rows of (conversation, turn, ttft, latency, chunks, output tokens)."""
    columns = ["conversation", "turn", "ttft", "latency", "chunks", "output_tokens"]
    table = pd.DataFrame(rows, columns=columns).assign(suite="s", seed=0, prompt_tokens=10, sent=0.0, waited=0.0)
    return table.assign(**more)


ROWS = [("a", 1, 0.1, 0.5, 3, 5), ("a", 2, 0.2, 0.2, 1, 1), ("b", 1, 0.3, 1.3, 5, 11), ("c", 1, 0.1, 0.4, 2, 4)]


def test_the_means_are_those_that_the_benchmark_prints() -> None:
    """TPOT over requests of two tokens or more, ITL over all pauses between chunks."""
    found = load.summarise(turns(ROWS))
    values = {kind: found[kind]["mean"]["value"] for kind in load.KINDS}
    assert values == {
        "ttft_ms": pytest.approx(1000 * (0.1 + 0.2 + 0.3 + 0.1) / 4),
        "tpot_ms": pytest.approx(1000 * (0.4 / 4 + 1.0 / 10 + 0.3 / 3) / 3),
        "itl_ms": pytest.approx(1000 * (0.4 + 1.0 + 0.3) / (2 + 4 + 1)),
        "e2el_ms": pytest.approx(1000 * (0.5 + 0.2 + 1.3 + 0.4) / 4),
    }
    assert found["ttft_ms"]["median"]["value"] == pytest.approx(np.median([100, 200, 300, 100]))
    assert found["e2el_ms"]["p99"]["value"] == pytest.approx(np.percentile([500, 200, 1300, 400], 99))
    assert found["e2el_ms"]["p99"]["low"] is None and found["requests"] == 4


def test_throughput_is_what_was_finished_over_the_time_of_the_run() -> None:
    found = load.throughput(turns(ROWS, sent=[0.0, 0.6, 0.9, 2.0], waited=[0.0, 0.0, 0.5, 0.5]), seconds=2.0, most=1)
    assert found["request_throughput"]["value"] == pytest.approx(4 / 2)
    assert found["output_throughput"]["value"] == pytest.approx(21 / 2)
    assert found["total_token_throughput"]["value"] == pytest.approx((21 + 40) / 2)
    assert found["concurrency"] == pytest.approx(2.4 / 2)
    # b was due at 0.4, when a's first turn was out; c at 1.5, when b was, but with room for two it was only late.
    assert (found["held"], found["begun"]) == (2, 3) and found["waited_ms"] == pytest.approx(1000 / 3)
    assert load.throughput(turns(ROWS, sent=[0.0, 0.6, 0.9, 2.0], waited=[0.0, 0.0, 0.5, 0.5]), 2.0, 2)["held"] == 0
    assert found["output_throughput"]["low"] < 10.5 < found["output_throughput"]["high"]


def test_turns_without_times_are_left_out() -> None:
    some = turns(ROWS)
    some.loc[2, ["ttft", "latency", "chunks"]] = np.nan
    assert load.summarise(some)["requests"] == 3
    assert load.summarise(some[["suite", "conversation", "turn", "output_tokens"]])["ttft_ms"]["mean"]["value"] is None
    assert load.compare(some.drop(columns=["ttft"]), some) == {}


def test_two_runs_are_compared_by_conversation() -> None:
    """All times twice as long: no spread is left, whatever the conversations are."""
    generator = np.random.default_rng(5)
    rows = [(str(n), 1, t, t + 4 * t, 5, 9) for n, t in enumerate(generator.uniform(0.1, 0.9, 30))]
    slow = [(name, turn, 2 * ttft, 2 * latency, chunks, n) for name, turn, ttft, latency, chunks, n in rows[3:]]
    found = load.compare(turns(rows), turns(slow))
    for kind in load.KINDS:
        change = found[kind]["relative_percent"]
        assert change["value"] == pytest.approx(100)
        assert change["high"] - change["low"] < 1e-6
    assert found["ttft_ms"]["a"]["value"] == pytest.approx(1000 * np.mean([row[2] for row in rows[3:]]))


def test_intervals_of_quantiles_hold_for_requests_that_come_in_conversations() -> None:
    """Of 400 samples of 60 conversations of 1 to 6 like requests: binomial, 5 % outside; a chance of 1e-6 is 42."""
    generator, outside = np.random.default_rng(11), {0.5: 0, 0.9: 0}
    truth = {q: float(np.quantile(_sample(np.random.default_rng(1), 400_000)[0], q)) for q in outside}
    for _ in range(400):
        values, clusters = _sample(generator, 60)
        for q in outside:
            found = load.quantile(values, clusters, q)
            assert found.low is not None and found.high is not None
            outside[q] += not found.low <= truth[q] <= found.high
    assert all(count < 42 for count in outside.values()), outside
    assert outside[0.5] > 3  # and they are no wider than they need be


def _sample(generator: np.random.Generator, conversations: int) -> tuple[Any, Any]:
    """Log-normal times that are alike within a conversation."""
    own = generator.normal(0, 0.7, conversations)
    sizes = generator.integers(1, 7, conversations)
    clusters = np.repeat(np.arange(conversations), sizes)
    return np.exp(own[clusters] + generator.normal(0, 0.5, len(clusters))), clusters


@pytest.mark.parametrize("rate", [np.inf, 7.5])
def test_the_simulated_server_runs_eight_at_most_and_gives_each_its_tokens(rate: float) -> None:
    """`scripts/load_coverage.py`: a disturbance that lasts makes times differ, and acceptance not."""
    simulation = script("load_coverage")
    taus = []
    for size in (0.0, 0.2):
        made, counts = simulation.run(np.random.default_rng(3), rate, size, 3.0 * (size > 0))
        flight = [((made.sent <= at) & (at < made.sent + made.latency)).sum() for at in made.sent]
        assert max(flight) <= simulation.BATCH and (made.ttft > 0).all() and (made.latency >= made.ttft).all()
        assert (made.output_tokens - 1 <= counts.sum(axis=1)).all() and (made.waited >= 0).all()
        found = simulation.estimates(made, counts)
        assert all(one["low"] < one["value"] < one["high"] for one in found.values())
        taus.append(found["tau"])
    assert taus[0]["low"] < taus[1]["value"] < taus[0]["high"]


def test_the_page_shows_the_coverage_that_is_stored() -> None:
    root = Path(load.__file__).parents[2]
    stored = pd.read_csv(root / "results" / "statistics" / "load.csv", keep_default_na=False)
    assert script("load_coverage").table(stored) in (root / "docs" / "measure" / "under-load.md").read_text()
    assert stored[stored["number"] == "tau"]["coverage"].between(0.91, 0.98).all()
