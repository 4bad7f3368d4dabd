"""Acceptance against length: which steps are counted where."""

from __future__ import annotations

import pandas as pd
import pytest

from speceval.estimate.lengths import by_length, contexts, starts, truncated


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two requests: steps that commit 3, 1 (undrafted), 2 tokens, and 1; prompts of 10 and 100 tokens."""
    rows = [("a", 1, 4, 2, 3), ("a", 2, 0, 0, 1), ("a", 3, 4, 1, 2), ("b", 1, 4, 0, 1)]
    steps = pd.DataFrame(rows, columns=["conversation", "step", "drafted", "accepted", "committed"])
    turns = pd.DataFrame({"conversation": ["a", "b"], "prompt_tokens": [10, 100], "finish_reason": ["length", "stop"]})
    return steps.assign(suite="s", seed=0, turn=1), turns.assign(suite="s", seed=0, turn=1)


def test_a_step_starts_after_the_prefill_s_token_and_all_steps_before_it() -> None:
    steps, turns = tables()
    assert starts(steps).tolist() == [1, 4, 5, 1]
    assert contexts(steps, turns).tolist() == [11, 14, 15, 101]
    assert starts(steps[::-1]).tolist() == [1, 5, 4, 1]


def test_steps_with_drafts_are_counted_between_powers_of_two() -> None:
    steps, turns = tables()
    rows = by_length(steps, starts(steps), 4)
    assert [(row["least"], row["most"], row["steps"], row["value"]) for row in rows] == [(1, 1, 2, 2.0), (4, 7, 1, 2.0)]
    rows = by_length(steps, contexts(steps, turns), 4)
    assert [(row["least"], row["most"], row["steps"], row["value"]) for row in rows] == [
        (8, 15, 2, 2.5),
        (64, 127, 1, 1.0),
    ]


def test_answers_that_were_cut_are_counted() -> None:
    assert truncated(tables()[1]) == 0.5
    assert truncated(tables()[1][:0]) is None


def test_all_lengths_together_are_all_steps() -> None:
    from speceval import read_run

    run = read_run("results/reference/demo/lk-eagle3-T1-probabilistic")
    rows = by_length(run.steps, starts(run.steps), 5)
    total = sum(row["value"] * row["steps"] for row in rows) / sum(row["steps"] for row in rows)
    assert total == pytest.approx(run.tau().value)
