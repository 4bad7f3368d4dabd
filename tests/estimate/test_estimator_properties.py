"""Properties that the estimators have on every run, tried on generated ones; and the edges, one by one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speceval.estimate import acceptance
from speceval.estimate.identities import reconcile
from speceval.estimate.statistics import holm, paired_ratio_difference, ratio_interval

TAUS = ("tau", "tau_paper", "tau_committed", "tau_request_mean")
tried = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Run:
    """A generated run: per request its conversation, seed and steps (drafted, accepted)."""

    k: int
    requests: tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...]

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Its tables, books in balance; nothing is trimmed."""
        steps, turns = [], []
        for turn, (conversation, seed, rows) in enumerate(self.requests, start=1):
            key = ("s", conversation, seed, turn)
            steps += [(*key, n, d, a, a + 1) for n, (d, a) in enumerate(rows, start=1)]
            drafted, accepted = sum(d for d, _ in rows), sum(a for _, a in rows)
            count, tokens = sum(d > 0 for d, _ in rows), 1 + sum(a + 1 for _, a in rows)
            turns.append((*key, tokens, "stop", count, len(rows) - count, 0, drafted, accepted, 0))
        columns = acceptance.STEP_COLUMNS, acceptance.TURN_COLUMNS
        return pd.DataFrame(steps, columns=columns[0]), pd.DataFrame(turns, columns=columns[1])

    def summary(self) -> dict[str, Any]:
        return acceptance.summarise(*self.frames(), self.k)


@st.composite
def runs(draw: st.DrawFn, full: bool = False) -> Run:
    """Up to eight requests of up to four conversations; with `full` every step drafts K tokens."""
    k = draw(st.integers(1, 4))
    drafted = st.just(k) if full else st.integers(0, k)
    step = drafted.flatmap(lambda d: st.tuples(st.just(d), st.integers(0, d)))
    rows = st.lists(step, min_size=1, max_size=6).map(tuple)
    request = st.tuples(st.sampled_from("abcd"), st.integers(0, 1), rows)
    return Run(k, tuple(draw(st.lists(request, min_size=1, max_size=8))))


@tried
@given(runs())
def test_every_length_is_the_fraction_that_its_definition_says(run: Run) -> None:
    found = run.summary()
    steps = [step for *_, rows in run.requests for step in rows if step[0]]
    accepted, drafted = sum(a for _, a in steps), sum(d for d, _ in steps)
    own = [[step for step in rows if step[0]] for *_, rows in run.requests]
    own_taus = [1 + Fraction(sum(a for _, a in rows), len(rows)) for rows in own if rows]
    expected = {
        "tau": 1 + Fraction(accepted, len(steps)) if steps else None,
        "tau_paper": 1 + run.k * Fraction(accepted, drafted) if steps else None,
        "tau_committed": Fraction(sum(a + 1 for _, a in steps), len(steps)) if steps else None,
        "tau_request_mean": sum(own_taus, Fraction()) / len(own_taus) if own_taus else None,
    }
    for name, value in expected.items():
        assert found[name]["value"] == (None if value is None else pytest.approx(float(value))), name


@tried
@given(runs(full=True))
def test_the_definitions_agree_where_every_step_drafts_k_and_nothing_is_trimmed(run: Run) -> None:
    found = run.summary()
    tau = found["tau"]
    for name in ("tau_paper", "tau_committed"):
        assert found[name] == pytest.approx(tau)
    rates = [row["unconditional"] for row in found["positions"]]
    assert 1 + sum(rates) == pytest.approx(tau["value"])
    conditional = [row["conditional"] for row in found["positions"]]
    for j, rate in enumerate(rates):
        assert rate == pytest.approx(np.prod([c or 0.0 for c in conditional[: j + 1]]))


@tried
@given(runs())
def test_positions_add_up_and_never_rise(run: Run) -> None:
    found = run.summary()
    rows = found["positions"]
    assert sum(row["accepted"] for row in rows) == found["accepted"]
    assert sum(row["drafted"] for row in rows) == found["drafted"]
    for one, following in pairwise(rows):
        assert one["accepted"] >= following["reached"] >= following["accepted"]
        assert one["drafted"] >= following["drafted"]


@tried
@given(runs(), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_the_names_of_conversations_do_not_matter(run: Run, random: Any) -> None:
    steps, turns = run.frames()
    seed = random.randrange(2**32)
    names = dict(zip("abcd", random.sample(["x", "y", "z", "w"], 4), strict=True))
    shuffled = (
        frame.sample(frac=1, random_state=seed).assign(conversation=lambda f: f["conversation"].map(names))
        for frame in (steps, turns)
    )
    assert flat(acceptance.summarise(*shuffled, run.k)) == pytest.approx(flat(run.summary()))


@tried
@given(runs(), st.integers(2, 5))
def test_the_same_steps_several_times_over_are_no_new_conversations(run: Run, times: int) -> None:
    """Repeating every step leaves each pooled length and its interval as they are: only conversations count."""
    once = run.summary()
    again = Run(run.k, tuple((c, s, rows * times) for c, s, rows in run.requests)).summary()
    for name in TAUS:
        assert again[name] == pytest.approx(once[name]), name


@tried
@given(runs())
def test_every_number_is_a_number_or_none_and_inside_its_interval(run: Run) -> None:
    found = run.summary()
    json.dumps(found, allow_nan=False)
    for name in TAUS:
        value, low, high = (found[name][part] for part in ("value", "low", "high"))
        if low is not None:
            assert 1 <= low <= value + 1e-9 and value - 1e-9 <= high <= run.k + 1
    for row in found["positions"]:
        for kind in ("unconditional", "conditional"):
            if row[f"{kind}_low"] is not None:
                assert 0 <= row[f"{kind}_low"] <= row[kind] + 1e-9
                assert row[kind] - 1e-9 <= row[f"{kind}_high"] <= 1
    assert found["warnings"], "so few conversations are never without a warning"


@tried
@given(runs())
def test_the_books_balance(run: Run) -> None:
    assert reconcile(*run.frames()) == []


@tried
@given(runs(), runs())
def test_comparing_backwards_changes_signs_only(one: Run, other: Run) -> None:
    by_conversation = {"pair_by": "conversation"}
    a, b = one.frames(), other.frames()
    if set(a[1]["conversation"]).isdisjoint(b[1]["conversation"]):
        return
    there = acceptance.compare(*a, *b, **by_conversation)  # type: ignore[arg-type]
    back = acceptance.compare(*b, *a, **by_conversation)  # type: ignore[arg-type]
    json.dumps([there, back], allow_nan=False)
    forth, turned = there["difference"], back["difference"]
    if forth["value"] is None:
        assert turned["value"] is None
        return
    assert forth["value"] == pytest.approx(-turned["value"])
    assert there["p_value"] == (None if back["p_value"] is None else pytest.approx(back["p_value"]))
    if forth["low"] is not None:
        assert (forth["low"], forth["se"]) == pytest.approx((-turned["high"], turned["se"]))
    for up, down in zip(there["positions"], back["positions"], strict=True):
        assert up["difference"]["value"] == pytest.approx(-down["difference"]["value"])


@tried
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0.1, 9)), min_size=2, max_size=12), st.floats(0.1, 10))
def test_units_scale_out_of_ratios_and_their_intervals(clusters: list[tuple[float, float]], factor: float) -> None:
    x, y = np.array(clusters).T
    plain, scaled = ratio_interval(x * y, y), ratio_interval(factor * x * y, y)
    assert plain.value is not None and plain.se is not None
    assert scaled.value == pytest.approx(factor * plain.value)
    assert scaled.se == pytest.approx(factor * plain.se, abs=1e-9)
    assert scaled.df == pytest.approx(ratio_interval(x * y * factor, y * factor).df)
    assert 1 <= scaled.df <= len(y) - 1 + 1e-9
    more = paired_ratio_difference(x * y + y, y, factor * (x * y + y), y)
    assert more.relative_percent.value == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert more.relative_percent.se == pytest.approx(0, abs=1e-6)


@tried
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p_values: list[float | None]) -> None:
    adjusted = holm(p_values)
    pairs = sorted((p, q) for p, q in zip(p_values, adjusted, strict=True) if p is not None and q is not None)
    assert all(p <= q <= min(1, len(pairs) * p + 1e-12) for p, q in pairs)
    assert [q for _, q in pairs] == sorted(q for _, q in pairs)
    assert [p is None for p in p_values] == [q is None for q in adjusted]


def same(accepted: int, k: int, conversations: int, steps: int = 3) -> Run:
    """Every step drafts k and accepts the same number."""
    return Run(k, tuple((name, 0, ((k, accepted),) * steps) for name in "abcdefgh"[:conversations]))


EDGES = {
    "nothing accepted": (same(0, 3, 4), 1.0, "same tau"),
    "everything accepted": (same(3, 3, 4), 4.0, "same tau"),
    "one conversation": (same(1, 3, 1), 2.0, "one conversation"),
    "K = 1, one step": (same(1, 1, 1, steps=1), 2.0, "one conversation"),
    "greedy text, equal seeds": (
        Run(2, tuple((c, s, ((2, 1), (2, 0))) for c in "ab" for s in (0, 1))),
        1.5,
        "same tau",
    ),
    "no step drafts": (Run(2, (("a", 0, ((0, 0),)), ("b", 0, ((0, 0),)))), None, "nothing was measured"),
}


@pytest.mark.parametrize("name", EDGES)
def test_the_edges_give_a_number_or_a_clear_word(name: str) -> None:
    run, tau, word = EDGES[name]
    found = run.summary()
    json.dumps(found, allow_nan=False)
    assert found["tau"]["value"] == tau
    assert any(word in line for line in found["warnings"])
    itself = acceptance.compare(*run.frames(), *run.frames())
    json.dumps(itself, allow_nan=False)
    assert itself["difference"]["value"] == (None if tau is None else 0)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by dotted name, without None (which pytest.approx cannot compare) and words."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}.{key}").items()}
    if isinstance(value, list):
        return {k: v for index, item in enumerate(value) for k, v in flat(item, f"{name}.{index}").items()}
    return {name: value} if isinstance(value, int | float) else {}
