"""Estimators on a run small enough to count by hand, and the identities between a run's tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from speceval.errors import UserError
from speceval.estimate.acceptance import (
    compare,
    conversation_totals,
    positions,
    summarise,
    tau,
    tau_committed,
    tau_paper,
    tau_request_mean,
)
from speceval.estimate.identities import check_counters, reconcile
from speceval.estimate.statistics import paired_ratio_difference
from speceval.store import REQUEST

K = 3


@pytest.fixture
def steps() -> pd.DataFrame:
    """Conversation 81: an undrafted step, a short draft, a trimmed last step. 82: two seeds, one without any step."""
    rows = [
        # conversation, seed, turn, step, drafted, accepted, committed
        ("81", 0, 1, 1, 3, 2, 3),
        ("81", 0, 1, 2, 0, 0, 1),
        ("81", 0, 1, 3, 2, 2, 3),
        ("81", 0, 1, 4, 3, 1, 1),  # EOS came first: one of two emitted tokens stays
        ("81", 0, 2, 1, 3, 0, 1),
        ("82", 0, 1, 1, 3, 3, 4),
        ("82", 0, 1, 2, 3, 0, 1),
    ]
    columns = ["conversation", "seed", "turn", "step", "drafted", "accepted", "committed"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.insert(0, "suite", "mt_bench")
    return frame


@pytest.fixture
def turns() -> pd.DataFrame:
    rows = [
        # conversation, seed, turn, output_tokens, finish, steps, undrafted, drafted, accepted, excess
        ("81", 0, 1, 9, "length", 3, 1, 8, 5, 1),
        ("81", 0, 2, 2, "stop", 1, 0, 3, 0, 0),
        ("82", 0, 1, 6, "stop", 2, 0, 6, 3, 0),
        ("82", 1, 1, 1, "stop", 0, 0, 0, 0, 0),  # the prefill's token was EOS
    ]
    columns = ["conversation", "seed", "turn", "output_tokens", "finish_reason", "steps"]
    frame = pd.DataFrame(rows, columns=[*columns, "undrafted_steps", "drafted", "accepted", "excess"])
    frame.insert(0, "suite", "mt_bench")
    return frame.assign(category="writing", prompt_tokens=7, padded_steps=0)


def simulated_run(
    seed: int, conversations: int = 60, seeds: int = 2, k: int = 4, better: float = 0.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Consistent tables of a made-up run: per-conversation acceptance, short drafts, undrafted steps, trimmed ends."""
    rng = np.random.default_rng(seed)
    requests = pd.DataFrame(
        [("s", f"c{c}", s, t) for c in range(conversations) for s in range(seeds) for t in (1, 2)],
        columns=["suite", "conversation", "seed", "turn"],
    )
    count = rng.integers(1, 30, len(requests))
    steps = requests.loc[requests.index.repeat(count)].reset_index(drop=True)
    request = np.repeat(np.arange(len(requests)), count)
    steps["step"] = np.concatenate([np.arange(1, n + 1) for n in count])
    rate = np.repeat(rng.beta(4, 3, conversations), seeds * 2)[request] * (1 + better)
    steps["drafted"] = rng.integers(0, k + 1, len(steps))
    run = np.cumprod(rng.random((len(steps), k)) < np.minimum(rate, 1)[:, None], axis=1).sum(1)
    steps["accepted"] = np.minimum(run, steps["drafted"])
    last = (steps["step"] == count[request]).to_numpy()
    trim = np.where(last, rng.integers(0, 1 + steps["accepted"]), 0)
    steps["committed"] = 1 + steps["accepted"] - trim

    def total(values: object) -> np.ndarray:
        return np.bincount(request, np.asarray(values, float), len(requests)).astype(int)

    turns = requests.assign(
        category="x",
        prompt_tokens=5,
        output_tokens=1 + total(steps["committed"]),
        finish_reason=rng.choice(["stop", "length"], len(requests)),
        steps=total(steps["drafted"] > 0),
        undrafted_steps=total(steps["drafted"] == 0),
        padded_steps=0,
        drafted=total(steps["drafted"]),
        accepted=total(steps["accepted"]),
        excess=total(trim),
    )
    return steps, turns


def both(
    change: Callable[[pd.DataFrame], pd.DataFrame], run: tuple[pd.DataFrame, pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same change made to a run's steps and turns."""
    return change(run[0]), change(run[1])


class TestEstimators:
    def test_tau_pools_accepted_over_drafted_steps(self, steps: pd.DataFrame) -> None:
        assert tau(steps) == pytest.approx(1 + 8 / 6)

    def test_tau_paper_differs_where_drafts_are_shorter_than_k(self, steps: pd.DataFrame) -> None:
        assert tau_paper(steps, K) == pytest.approx(1 + 3 * 8 / 17)
        full = steps[steps["drafted"] == K]
        assert tau_paper(full, K) == pytest.approx(tau(full))

    def test_tau_committed_leaves_out_trimmed_tokens_and_undrafted_steps(self, steps: pd.DataFrame) -> None:
        assert tau_committed(steps) == pytest.approx((3 + 3 + 1 + 1 + 4 + 1) / 6)

    def test_tau_request_mean_weighs_requests_alike_and_skips_those_without_steps(self, turns: pd.DataFrame) -> None:
        assert tau_request_mean(turns) == pytest.approx(((1 + 5 / 3) + 1 + (1 + 3 / 2)) / 3)

    def test_positions_count_accepted_drafted_and_reached(self, steps: pd.DataFrame) -> None:
        counts = positions(steps, K)
        assert counts[["position", "accepted", "drafted", "reached"]].to_numpy().tolist() == [
            [1, 4, 6, 6],
            [2, 3, 6, 4],
            [3, 1, 5, 2],  # a draft of two neither drafts nor reaches position 3
        ]
        assert counts["unconditional"].tolist() == pytest.approx([4 / 6, 3 / 6, 1 / 5])
        assert counts["conditional"].tolist() == pytest.approx([4 / 6, 3 / 4, 1 / 2])

    def test_without_drafted_steps_every_estimator_is_undefined(self, steps: pd.DataFrame, turns: pd.DataFrame) -> None:
        none, no_turns = steps[steps["drafted"] == 0], turns[turns["steps"] == 0]
        assert [tau(none), tau_paper(none, K), tau_committed(none), tau_request_mean(no_turns)] == [None] * 4
        assert positions(none, K)["conditional"].isna().all()


class TestSummarise:
    def test_has_exactly_the_agreed_shape_and_plain_values(self, steps: pd.DataFrame, turns: pd.DataFrame) -> None:
        found = summarise(steps, turns, K)
        assert json.loads(json.dumps(found)) == found  # no numpy types, no NaN
        assert list(found) == [
            *("conversations", "samples", "turns", "steps", "undrafted_steps", "padded_steps", "drafted", "accepted"),
            *(
                "committed",
                "excess",
                "finish",
                "tau",
                "tau_paper",
                "tau_committed",
                "tau_request_mean",
                "tau_all_steps",
            ),
            *("tau_rb", "agreement", "positions", "variance", "warnings"),
        ]
        assert list(found["tau"]) == ["value", "low", "high", "se"]
        assert list(found["positions"][0]) == [
            *("position", "accepted", "drafted", "reached", "unconditional", "conditional"),
            *("unconditional_low", "unconditional_high", "conditional_low", "conditional_high"),
            *("unconditional_rb", "unconditional_rb_low", "unconditional_rb_high"),
        ]

    def test_counts(self, steps: pd.DataFrame, turns: pd.DataFrame) -> None:
        found = summarise(steps, turns, K)
        assert (found["conversations"], found["samples"], found["turns"]) == (2, 3, 4)
        assert (found["steps"], found["undrafted_steps"]) == (6, 1)
        assert (found["drafted"], found["accepted"]) == (17, 8)
        assert (found["committed"], found["excess"]) == (9 + 2 + 6 + 1, 1)
        assert found["finish"] == {"stop": 3, "length": 1}

    def test_tau_interval_by_hand(self, steps: pd.DataFrame, turns: pd.DataFrame) -> None:
        """81: 4 steps, 9 tokens; 82: 2 steps, 5 tokens. e = (9 - 4·7/3)/6 = -1/18 and +1/18; se² = 2 · 2/18²."""
        found = summarise(steps, turns, K)["tau"]
        assert found["value"] == pytest.approx(7 / 3)
        assert found["se"] == pytest.approx(1 / 9)
        assert found["high"] == pytest.approx(7 / 3 + 12.706204736 / 9)
        assert found["low"] == 1.0  # 7/3 - 1.41 < 1, which tau cannot be

    def test_request_mean_interval_by_hand(self, steps: pd.DataFrame, turns: pd.DataFrame) -> None:
        """81: taus 8/3 and 1; 82: 5/2. R = 37/18; e = (11/3 - 2 R)/3 = -4/27 and +4/27; se² = 2 · 2 (4/27)²."""
        assert summarise(steps, turns, K)["tau_request_mean"]["se"] == pytest.approx(8 / 27)

    def test_values_are_those_of_the_estimators(self) -> None:
        steps, turns = simulated_run(1)
        found = summarise(steps, turns, 4)
        expected = {
            "tau": tau(steps),
            "tau_paper": tau_paper(steps, 4),
            "tau_committed": tau_committed(steps),
            "tau_request_mean": tau_request_mean(turns),
        }
        assert {name: found[name]["value"] for name in expected} == pytest.approx(expected)
        table = pd.DataFrame(found["positions"])
        pd.testing.assert_frame_equal(table[positions(steps, 4).columns], positions(steps, 4))
        for row in found["positions"]:
            assert 0 <= row["unconditional_low"] < row["unconditional"] < row["unconditional_high"] <= 1
            assert 0 <= row["conditional_low"] < row["conditional"] < row["conditional_high"] <= 1

    def test_row_order_does_not_matter(self) -> None:
        steps, turns = simulated_run(2)
        shuffled = summarise(steps.sample(frac=1, random_state=0), turns.sample(frac=1, random_state=1), 4)
        assert flat(shuffled) == pytest.approx(flat(summarise(steps, turns, 4)))

    def test_seeds_of_a_conversation_stay_one_cluster(self) -> None:
        """Calling a turn a seed changes nothing; calling it a conversation makes the interval narrower."""
        steps, turns = simulated_run(3)
        before = summarise(steps, turns, 4)
        relabelled = both(lambda f: f.assign(seed=2 * f["seed"] + f["turn"], turn=1), (steps, turns))
        after = summarise(*relabelled, 4)
        assert after["samples"] == 2 * before["samples"]
        assert after["tau"] == pytest.approx(before["tau"])
        assert after["tau_request_mean"] == pytest.approx(before["tau_request_mean"])
        apart = both(lambda f: f.assign(conversation=f["conversation"] + f["seed"].astype(str)), (steps, turns))
        assert summarise(*apart, 4)["tau"]["se"] < 0.9 * before["tau"]["se"]

    def test_one_conversation_has_values_but_no_interval_and_says_so(
        self, steps: pd.DataFrame, turns: pd.DataFrame
    ) -> None:
        one = summarise(steps[steps["conversation"] == "81"], turns[turns["conversation"] == "81"], K)
        assert one["tau"] == {"value": 1 + 5 / 4, "low": None, "high": None, "se": None}
        assert one["positions"][0]["unconditional_low"] is None
        assert any("one conversation" in line for line in one["warnings"])

    def test_a_run_without_drafts_is_summarised_with_a_warning(self, steps: pd.DataFrame, turns: pd.DataFrame) -> None:
        bare = summarise(steps[steps["drafted"] == 0], turns[turns["steps"] == 0], K)
        assert bare["tau"] == {"value": None, "low": None, "high": None, "se": None}
        assert bare["positions"][2]["conditional"] is None
        assert any("nothing was measured" in line for line in bare["warnings"])
        empty = summarise(steps[:0], turns[:0], K)
        assert (empty["turns"], empty["tau"]["value"]) == (0, None)

    def test_equal_conversations_are_not_passed_off_as_certainty(self) -> None:
        steps, turns = simulated_run(4)
        never = steps.assign(accepted=0, committed=1)
        assert any("zero width" in w for w in summarise(never, turns.assign(accepted=0), 4)["warnings"])
        assert not any("zero width" in w for w in summarise(steps, turns, 4)["warnings"])

    def test_few_conversations_draw_a_warning_and_many_do_not(self) -> None:
        assert any("only 19 conv" in line for line in summarise(*simulated_run(5, conversations=19), 4)["warnings"])
        many = summarise(*simulated_run(5, conversations=164), 4)["warnings"]
        assert not any("only" in line for line in many)

    def test_a_position_that_few_conversations_carry_is_named_where_all_together_are_enough(self) -> None:
        """Position 3 is accepted in 10 of 80 conversations, 4 in none: that is no chance of theirs to be few."""
        steps, turns = simulated_run(5, conversations=80)
        accepted = steps["accepted"].clip(upper=2).to_numpy().copy()
        few = steps["conversation"].isin(steps["conversation"].unique()[:10]).to_numpy()
        accepted[few] = 3
        steps = steps.assign(accepted=accepted, committed=accepted + 1)
        sums = steps.groupby(REQUEST)["accepted"].sum()
        turns = turns.assign(accepted=sums.reindex(pd.MultiIndex.from_frame(turns[REQUEST])).fillna(0).to_numpy())
        [line] = [line for line in summarise(steps, turns, 4)["warnings"] if "position" in line]
        assert line.startswith("position 3: what is accepted there lies in conversations that count as ")
        many = summarise(*simulated_run(5, conversations=164), 4)["warnings"]
        assert not any("position" in line for line in many)

    def test_several_seeds_say_where_the_variance_comes_from_and_one_does_not(self) -> None:
        """Conversations differ in their rate: with 2 seeds of 60 prompts most of the variance lies between prompts."""
        steps, turns = simulated_run(5)
        found = summarise(steps, turns, 4)
        variance = found["variance"]
        assert variance["se"] == pytest.approx(found["tau"]["se"])
        assert 0 < variance["se_samples"] < variance["se"]
        assert 0.5 < variance["cluster_share"] < 1
        assert summarise(steps[steps["seed"] == 0], turns[turns["seed"] == 0], 4)["variance"] is None

    def test_confidence_widens_the_interval(self) -> None:
        steps, turns = simulated_run(6)
        narrow, wide = (summarise(steps, turns, 4, confidence=c)["tau"] for c in (0.8, 0.99))
        assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]

    def test_bad_input_is_refused_in_one_line(self, steps: pd.DataFrame, turns: pd.DataFrame) -> None:
        with pytest.raises(UserError, match="drafts 3 tokens but K is 2"):
            summarise(steps, turns, 2)
        with pytest.raises(UserError, match=r"lacks the column.* accepted"):
            summarise(steps.drop(columns="accepted"), turns, K)
        with pytest.raises(UserError, match="empty values in drafted"):
            summarise(steps.assign(drafted=np.nan), turns, K)
        with pytest.raises(UserError, match=r"one suite at a time.*gsm8k, mt_bench"):
            summarise(steps, pd.concat([turns, turns.assign(suite="gsm8k")]), K)


def flat(summary: dict) -> dict[str, float]:
    """A summary's numbers under dotted names."""
    whole = {key: value for key, value in summary.items() if key != "warnings"}
    whole["positions"] = {str(row["position"]): row for row in summary["positions"]}
    return dict(pd.json_normalize(whole).iloc[0])


# What is changed: (table, row, column, value). Each entry must give exactly the lines beside it.
TAMPERINGS: dict[str, tuple[list[tuple[str, int, str, Any]], list[str]]] = {
    "turn steps": ([("turns", 0, "steps", 4)], ["81 seed 0 turn 1: steps is 4 but #(drafted > 0) is 3"]),
    "turn undrafted_steps": (
        [("turns", 0, "undrafted_steps", 0)],
        ["81 seed 0 turn 1: undrafted_steps is 0 but #(drafted = 0) is 1"],
    ),
    "turn drafted": ([("turns", 1, "drafted", 4)], ["81 seed 0 turn 2: drafted is 4 but Σ drafted is 3"]),
    "turn accepted": ([("turns", 2, "accepted", 2)], ["82 seed 0 turn 1: accepted is 2 but Σ accepted is 3"]),
    "turn output_tokens": (
        [("turns", 3, "output_tokens", 2)],
        ["82 seed 1 turn 1: output_tokens is 2 but 1 + Σ committed is 1"],
    ),
    "turn excess": (
        [("turns", 0, "excess", 0)],
        ["81 seed 0 turn 1: excess is 0 but Σ (1 + accepted - committed) is 1"],
    ),
    "finish reason": (
        [("turns", 1, "finish_reason", "abort")],
        ["81 seed 0 turn 2: finish_reason 'abort' is none of stop, length"],
    ),
    "more accepted than drafted": (
        [
            *(("steps", 2, "accepted", 3), ("steps", 2, "committed", 4)),
            *(("turns", 0, "accepted", 6), ("turns", 0, "output_tokens", 10)),
        ],
        ["81 seed 0 turn 1: step 3 accepts 3 of 2 drafted tokens"],
    ),
    "negative accepted": (
        [("steps", 6, "accepted", -1), ("turns", 2, "accepted", 2), ("turns", 2, "excess", -1)],
        [
            "82 seed 0 turn 1: step 2 accepts -1 of 3 drafted tokens",
            "82 seed 0 turn 1: step 2 is the last and commits 1 tokens, outside 1 … 1 + -1 accepted",
        ],
    ),
    "an earlier step trimmed": (
        [("steps", 0, "committed", 2), ("turns", 0, "output_tokens", 8), ("turns", 0, "excess", 2)],
        ["81 seed 0 turn 1: step 1 commits 2 tokens, not 1 + 2 accepted, and is not the last"],
    ),
    "the last step commits nothing": (
        [("steps", 4, "committed", 0), ("turns", 1, "output_tokens", 1), ("turns", 1, "excess", 1)],
        ["81 seed 0 turn 2: step 1 is the last and commits 0 tokens, outside 1 … 1 + 0 accepted"],
    ),
    "the last step commits too much": (
        [("steps", 3, "committed", 3), ("turns", 0, "output_tokens", 11), ("turns", 0, "excess", -1)],
        ["81 seed 0 turn 1: step 4 is the last and commits 3 tokens, outside 1 … 1 + 1 accepted"],
    ),
    "a step number skipped": (
        [("steps", 6, "step", 3)],
        ["82 seed 0 turn 1: the last step's number is 3 but #(step rows) is 2"],
    ),
    "a step number below 1": (
        [("steps", 1, "step", 0)],
        ["81 seed 0 turn 1: step 0 has no number from 1 on"],
    ),
    "a step number twice": (
        [("steps", 1, "step", 1)],
        ["81 seed 0 turn 1: step 1 appears twice"],
    ),
    "steps of an unknown request": (
        [("steps", 4, "turn", 3), ("turns", 1, "turn", 4)],
        [
            "81 seed 0 turn 3: step rows without a turn row",
            "81 seed 0 turn 4: steps is 1 but #(drafted > 0) is 0",
            "81 seed 0 turn 4: drafted is 3 but Σ drafted is 0",
            "81 seed 0 turn 4: output_tokens is 2 but 1 + Σ committed is 1",
        ],
    ),
    "a request twice": (
        [("turns", 1, "turn", 1)],
        ["81 seed 0 turn 1: more than one turn row"],
    ),
}


class TestReconcile:
    def test_consistent_tables_have_no_violation(self, steps: pd.DataFrame, turns: pd.DataFrame) -> None:
        assert reconcile(steps, turns) == []
        assert reconcile(steps.sample(frac=1, random_state=0), turns[::-1]) == []
        assert reconcile(*simulated_run(7)) == []
        assert reconcile(steps[:0], turns[:0]) == []

    @pytest.mark.parametrize("kind", TAMPERINGS)
    def test_each_kind_of_tampering_is_named_with_its_request(
        self, steps: pd.DataFrame, turns: pd.DataFrame, kind: str
    ) -> None:
        changes, lines = TAMPERINGS[kind]
        frames = {"steps": steps, "turns": turns}
        for table, row, column, value in changes:
            frames[table].loc[row, column] = value
        assert reconcile(steps, turns) == [f"mt_bench {line}" for line in lines]

    def test_a_lost_row_is_found(self, steps: pd.DataFrame, turns: pd.DataFrame) -> None:
        for row in range(len(steps)):
            assert reconcile(steps.drop(index=row), turns), f"step row {row}"
        for row in range(3):  # the fourth request has no step rows: nothing in `steps` knows of it
            assert reconcile(steps, turns.drop(index=row)), f"turn row {row}"

    def test_missing_columns_are_refused(self, steps: pd.DataFrame, turns: pd.DataFrame) -> None:
        with pytest.raises(UserError, match=r"turns table lacks the column.* excess"):
            reconcile(steps, turns.drop(columns="excess"))

    def test_a_large_run_takes_well_under_a_second(self) -> None:
        """1,319 conversations of 200 steps took 0.1 s; 2 s leaves room for a busy machine, not for a row loop."""
        requests = pd.DataFrame({"suite": "gsm8k", "conversation": np.arange(1319).astype(str), "seed": 0, "turn": 1})
        steps = requests.loc[requests.index.repeat(200)].reset_index(drop=True)
        steps = steps.assign(step=np.tile(np.arange(1, 201), 1319), drafted=5, accepted=2, committed=3)
        turns = requests.assign(
            output_tokens=601, finish_reason="stop", steps=200, undrafted_steps=0, drafted=1000, accepted=400, excess=0
        ).assign(padded_steps=0)
        begin = time.perf_counter()
        assert reconcile(steps, turns) == []
        assert time.perf_counter() - begin < 2


COUNTERS: dict[str, Any] = {
    "num_drafts": 6,
    "num_draft_tokens": 17,
    "num_accepted_tokens": 8,
    "num_accepted_tokens_per_pos": [4, 3, 1],
}


class TestCheckCounters:
    def test_equal_counters_give_no_line(self, steps: pd.DataFrame) -> None:
        assert check_counters(steps, COUNTERS) == []
        longer = COUNTERS | {"num_accepted_tokens_per_pos": [4, 3, 1, 0, 0]}
        assert check_counters(steps, longer) == []

    @pytest.mark.parametrize("name", ["num_drafts", "num_draft_tokens", "num_accepted_tokens"])
    def test_each_counter_is_compared_exactly(self, steps: pd.DataFrame, name: str) -> None:
        wrong = COUNTERS | {name: COUNTERS[name] + 1}
        (line,) = check_counters(steps, wrong)
        assert line == f"{name}: step rows give {COUNTERS[name]}, the engine counted {wrong[name]}"

    @pytest.mark.parametrize(
        ("per_position", "line"),
        [
            ([4, 2, 1], "num_accepted_tokens_per_pos[1]: step rows give 3, the engine counted 2"),
            ([4, 3], "num_accepted_tokens_per_pos[2]: step rows give 1, the engine counted 0"),
            ([4, 3, 1, 2], "num_accepted_tokens_per_pos[3]: step rows give 0, the engine counted 2"),
        ],
    )
    def test_each_position_is_compared_exactly(self, steps: pd.DataFrame, per_position: list[int], line: str) -> None:
        assert check_counters(steps, COUNTERS | {"num_accepted_tokens_per_pos": per_position}) == [line]

    @pytest.mark.parametrize(
        ("name", "beside", "words"),
        [
            ("num_drafts", 1, "1 to 3"), ("num_drafts", 3, "1 to 3"), ("num_accepted_tokens", 2, "2"),
            ("num_draft_tokens", 0, ""),
        ],
    )  # fmt: skip
    def test_what_unfinished_conversations_counted_is_taken_off_within_its_bounds(
        self, steps: pd.DataFrame, name: str, beside: int, words: str
    ) -> None:
        least = {"num_drafts": 1, "num_accepted_tokens": 2, "num_accepted_tokens_per_pos": [1, 1]}
        most = least | {"num_drafts": 3}
        inside = COUNTERS | {"num_drafts": 7, "num_accepted_tokens": 10, "num_accepted_tokens_per_pos": [5, 4, 1]}
        at = inside | {name: COUNTERS[name] + beside}
        assert check_counters(steps, at, least, most) == []
        for off in {beside - 1, beside + 1} - {2} if words == "1 to 3" else {beside - 1, beside + 1}:
            wrong = inside | {name: COUNTERS[name] + off}
            (line,) = check_counters(steps, wrong, least, most)
            given = f"step rows give {COUNTERS[name]}" + (f" and unfinished conversations {words}" if words else "")
            assert line == f"{name}: {given}, the engine counted {wrong[name]}"

    def test_without_an_upper_bound_only_too_few_are_seen(self, steps: pd.DataFrame) -> None:
        least = {"num_accepted_tokens_per_pos": [1, 1]}
        many = COUNTERS | {"num_drafts": 99, "num_draft_tokens": 999, "num_accepted_tokens_per_pos": [99, 99, 99, 99]}
        assert check_counters(steps, many, least) == []
        (line,) = check_counters(steps, many | {"num_accepted_tokens_per_pos": [99, 3, 1]}, least)
        assert line == (
            "num_accepted_tokens_per_pos[1]: step rows give 3 and unfinished conversations 1 or more, "
            "the engine counted 3"
        )

    def test_a_missing_counter_is_refused(self, steps: pd.DataFrame) -> None:
        with pytest.raises(UserError, match="lack num_drafts, num_accepted_tokens_per_pos"):
            check_counters(steps, {"num_draft_tokens": 17, "num_accepted_tokens": 8})


class TestCompare:
    def test_a_run_against_itself_differs_by_nothing(self) -> None:
        run = simulated_run(8)
        found = compare(*run, *run)
        assert found["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0, "se": 0.0}
        assert (found["p_value"], found["conversations"], found["samples"]) == (1.0, 60, 120)
        assert json.loads(json.dumps(found)) == found

    def test_difference_is_that_of_the_taus_with_the_paired_error(self) -> None:
        a, b = simulated_run(9), simulated_run(9, better=0.1)
        found = compare(*a, *b)
        assert found["tau_a"]["value"] == pytest.approx(tau(a[0]))
        tau_a, tau_b = (1 + s["accepted"].sum() / (s["drafted"] > 0).sum() for s in (a[0], b[0]))
        assert found["difference"]["value"] == pytest.approx(tau_b - tau_a)
        assert found["relative_percent"]["value"] == pytest.approx(100 * (tau_b / tau_a - 1))
        t_a, t_b = conversation_totals(a[0]), conversation_totals(b[0])
        t_b = t_b.loc[t_a.index]
        paired = paired_ratio_difference(
            t_a["steps"] + t_a["accepted"], t_a["steps"], t_b["steps"] + t_b["accepted"], t_b["steps"]
        )
        assert found["difference"] == paired.difference.as_dict()
        assert found["p_value"] == paired.p_value
        unpaired = np.hypot(found["tau_a"]["se"], found["tau_b"]["se"])
        assert found["difference"]["se"] < 0.7 * unpaired

    def test_a_drafter_that_drafts_further_in_hard_steps_is_worse_at_no_position(self) -> None:
        """Its position 3 is accepted in as many steps; among the steps that draft it, which now are all, in half."""
        easy, hard = [3, 3, 3, 3], [0, 1, 0, 1]
        rows = [(f"c{c}", n, own) for c in range(8) for n, own in enumerate((*easy, *hard), start=1)]
        steps = pd.DataFrame(rows, columns=["conversation", "step", "accepted"])
        steps = steps.assign(suite="s", seed=0, turn=1, drafted=3, committed=steps["accepted"] + 1)
        short = steps.assign(drafted=np.where(steps["accepted"] < 3, 1, 3))
        turns = steps.groupby(["suite", "conversation", "seed", "turn"], as_index=False).size()
        turns = turns.assign(steps=8, undrafted_steps=0, padded_steps=0, drafted=0, accepted=14, excess=0)
        turns = turns.assign(output_tokens=23, finish_reason="length")
        for row in compare(short, turns, steps, turns)["positions"]:
            assert row["a"] == row["b"] == {1: 0.75, 2: 0.5, 3: 0.5}[row["position"]]

    def test_differences_of_the_positions_add_up_to_that_of_tau_whatever_each_step_drafts(self) -> None:
        a, b = simulated_run(3), simulated_run(4, better=0.2)
        found = compare(*a, *b)
        assert sum(row["difference"]["value"] for row in found["positions"]) == pytest.approx(
            found["difference"]["value"]
        )

    def test_swapping_the_runs_flips_the_sign_only(self) -> None:
        a, b = simulated_run(10), simulated_run(11)
        there, back = compare(*a, *b), compare(*b, *a)
        assert there["difference"]["value"] == pytest.approx(-back["difference"]["value"])
        assert there["difference"]["low"] == pytest.approx(-back["difference"]["high"])
        assert there["p_value"] == pytest.approx(back["p_value"])

    def test_only_requests_of_both_runs_count(self) -> None:
        a, b = simulated_run(12), simulated_run(13)

        def without_some(f: pd.DataFrame) -> pd.DataFrame:
            return f[~f["conversation"].isin(["c3", "c41"]) & ((f["seed"] == 0) | (f["turn"] == 1))]

        partial_a, partial_b = both(without_some, a), both(without_some, b)
        found = compare(*a, *partial_b)
        assert (found["conversations"], found["samples"], found["turns"]) == (58, 116, 174)
        assert (found["only_a"], found["only_b"]) == (66, 0)
        assert found["tau_a"]["value"] == pytest.approx(tau(partial_a[0]))
        assert found["difference"] == compare(*partial_a, *partial_b)["difference"]
        back = compare(*partial_b, *a)
        assert (back["only_a"], back["only_b"]) == (0, 66)
        assert back["difference"] == compare(*partial_b, *partial_a)["difference"]

    def test_conversations_without_drafted_steps_in_one_run_are_left_out_of_both_taus_and_named(self) -> None:
        (a_steps, a_turns), b = simulated_run(14), simulated_run(15)
        found = compare(a_steps[a_steps["conversation"] != "c7"], a_turns, *b)
        assert found["conversations"] == 59
        assert any("1 conversations have no drafted step" in line for line in found["warnings"])
        assert found["tau_b"]["value"] - found["tau_a"]["value"] == pytest.approx(found["difference"]["value"])

    def test_an_equal_shift_everywhere_has_no_p_value_and_says_so(self) -> None:
        steps, turns = simulated_run(16)
        low, high = steps.assign(drafted=4, accepted=0), steps.assign(drafted=4, accepted=4)
        found = compare(low, turns, high, turns)
        assert (found["difference"]["value"], found["p_value"]) == (4.0, None)
        assert any("no p-value" in line for line in found["warnings"])

    def test_runs_without_common_requests_are_refused(self) -> None:
        a, b = simulated_run(17), simulated_run(17)
        other = both(lambda f: f.assign(seed=f["seed"] + 10), b)
        with pytest.raises(UserError, match="share no"):
            compare(*a, *other)
        with pytest.raises(UserError, match="one suite at a time"):
            compare(*a, *both(lambda f: f.assign(suite="t"), b))


def test_import_needs_neither_vllm_nor_torch() -> None:
    code = (
        "import sys; sys.modules.update(vllm=None, torch=None);"
        "import speceval.estimate.acceptance, speceval.estimate.statistics"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
