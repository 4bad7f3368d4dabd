"""What the audits count, and from where on they call for attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.records import altered, segment
from support.report_runs import write_run

from speceval.estimate.statistics import LEAST_EFFECTIVE
from speceval.show.report.audits import EXCESS, FEW_STEPS, TRUNCATED, Audit, audit, own_k, share
from speceval.store import StoredRun


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    """100 conversations that nothing is wrong with: 5 steps of 3 drafts each."""
    return write_run(tmp_path / "run", conversations=100, seeds=1, steps=5, k=3)


def found(run: StoredRun, name: str) -> Audit:
    return next(one for one in audit(run) if one.name == name)


def with_counters(run: StoredRun, **counters: Any) -> StoredRun:
    return altered(run, segments=[segment(100, **counters)])


def with_spec(run: StoredRun, **fields: Any) -> StoredRun:
    return altered(run, **{f"spec__{name}": value for name, value in fields.items()})


def with_turns(run: StoredRun, count: int, **columns: Any) -> StoredRun:
    turns = run.turns.copy()
    for name, value in columns.items():
        turns.loc[turns.index[:count], name] = value
    return replace(run, turns=turns)


def test_a_sound_run_needs_no_attention(run: StoredRun) -> None:
    loud = [one.name for one in audit(run) if one.attention]
    assert loud == []
    assert len({one.name for one in audit(run)}) == len(audit(run)) == 14


def test_truncation_calls_above_its_limit_in_any_suite(tmp_path: Path, run: StoredRun) -> None:
    at = int(TRUNCATED * 100)
    assert not found(with_turns(run, at, finish_reason="length"), "truncation rate").attention
    one = found(with_turns(run, at + 1, finish_reason="length"), "truncation rate")
    assert one.attention and one.value == "6 % (6 of 100 turns)"
    two = write_run(tmp_path / "two", suites=("demo", "other"), conversations=100, seeds=1)
    one = found(with_turns(two, 6, finish_reason="length"), "truncation rate")
    assert one.attention and one.value == "3 % (6 of 200 turns): demo 6 %, other 0 %"


def test_excess_is_held_against_all_emitted_tokens(run: StoredRun) -> None:
    emitted = len(run.steps) + int(run.steps["accepted"].sum())
    few, many = int(EXCESS * emitted), int(EXCESS * emitted) + 1
    assert not found(with_turns(run, 1, excess=few), "tokens past the end of a turn").attention
    one = found(with_turns(run, 1, excess=many), "tokens past the end of a turn")
    assert one.attention and f"{many} of {emitted:,} emitted tokens" in one.value


def test_short_drafts_and_undrafted_steps_are_told_apart(run: StoredRun) -> None:
    steps = run.steps.copy()
    count = int(FEW_STEPS * len(steps)) + 1
    steps.loc[steps.index[:count], ["drafted", "accepted"]] = [2, 0]
    steps.loc[steps.index[-count:], ["drafted", "accepted"]] = [0, 0]
    changed = replace(run, steps=steps)
    short, undrafted = found(changed, "short drafts"), found(changed, "undrafted steps")
    assert short.attention and f"{count} of {len(steps) - count} steps with drafts" in short.value
    assert undrafted.attention and f"{count} of {len(steps)} steps" in undrafted.value


def test_padded_steps_have_no_rows_and_are_added_to_the_whole(run: StoredRun) -> None:
    one = found(with_turns(run, 1, padded_steps=10), "padded steps")
    assert one.attention and one.value == "2 % (10 of 510 steps)"


@pytest.mark.parametrize(
    ("counter", "name", "value"),
    [
        ("steps_one_hot", "steps that lost q", "100 % (2 of 2 counted steps)"),
        ("steps_structured", "steps under a grammar", "2"),
        ("preemptions", "preemptions", "2"),
    ],
)
def test_worker_counters_call_at_the_first(run: StoredRun, counter: str, name: str, value: str) -> None:
    one = found(with_counters(run, **{counter: 2}), name)
    assert one.attention and one.value == value
    assert not found(with_counters(run), name).attention


def test_counters_that_nobody_kept_are_not_called_none(run: StoredRun) -> None:
    assert found(with_counters(run), "steps that lost q").value == "not counted (no sampled drafts)"
    assert found(altered(run, segments=[]), "preemptions").value == "0"


def test_a_resumed_run_names_its_stretches_and_calls_only_where_counters_are_missing(run: StoredRun) -> None:
    """As `speceval run` leaves them (tests/measure/test_resumed.py): after Ctrl-C, and after a kill."""
    first = segment(60) | {"interrupted": True, "unfinished_least": {}, "unfinished_most": {}}
    last = segment(40) | {"first": 60}
    one = found(altered(run, segments=[first, last]), "resumed")
    assert one.value == "2 stretches: 60, 40 conversations" and not one.attention
    one = found(altered(run, segments=[first | {"counters": None}, last]), "resumed")
    assert one.attention and one.value.endswith("; 40 of 100 conversations were held against the engine's counters")
    assert found(run, "resumed").value == "no"


def test_cache_hits_call_and_say_whether_they_were_asked_for(run: StoredRun) -> None:
    one = found(with_turns(run, 1, cached_tokens=10), "cache hits")
    assert one.attention and one.value == "1 % (10 of 1,000 prompt tokens), prefix caching off"


def test_k_beyond_the_drafters_own_calls(run: StoredRun) -> None:
    assert own_k(run.meta.spec) == 5
    assert own_k(with_spec(run, draft="someone/else").meta.spec) is None
    beyond = found(with_spec(run, k=6), "K against the trained block")
    assert beyond.attention and beyond.value == "K=6, the drafter's own is 5"
    assert not found(with_spec(run, draft="x", k=60), "K against the trained block").attention


def test_greedy_drafts_call_only_above_temperature_0(run: StoredRun) -> None:
    assert found(with_spec(run, drafting="greedy"), "drafting mode").attention
    assert not found(with_spec(run, drafting="greedy", temperature=0.0), "drafting mode").attention


def test_few_conversations_and_missing_or_shortened_ones_call(tmp_path: Path, run: StoredRun) -> None:
    few = write_run(tmp_path / "few", conversations=LEAST_EFFECTIVE - 1, seeds=9)
    assert found(few, "different conversations").attention
    missing = altered(run, conversations=101)
    assert found(missing, "conversations in the store").value == "100 of 101"
    assert found(missing, "conversations in the store").attention
    skipped = altered(run, skipped=[{"suite": "demo", "conversation": "1", "seed": 0, "skipped": "too long"}])
    assert found(skipped, "conversations in the store").value == "100 of 100, 1 cut short"


def test_a_run_without_anything_has_audits_in_words(run: StoredRun) -> None:
    empty = altered(replace(run, turns=run.turns.iloc[:0], steps=run.steps.iloc[:0]), segments=[])
    values = {one.name: one.value for one in audit(empty)}
    assert values["truncation rate"] == "no turns" and values["short drafts"] == "no steps with drafts"
    assert not any("nan" in value for value in values.values())


def test_shares_have_their_counts() -> None:
    assert share(0, 3, "turns") == "none of 3 turns"
    assert share(1, 3, "turns") == "33 % (1 of 3 turns)"
    assert share(3, 3, "turns") == "100 % (3 of 3 turns)"
    assert share(1, 3000, "turns") == "0.033 % (1 of 3,000 turns)"
    assert share(0, 0, "turns") == "no turns"
