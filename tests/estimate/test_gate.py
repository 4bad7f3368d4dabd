"""The gate's decision: what it says of known losses, how often it is wrong, and what it does with next to no data."""

import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from speceval.errors import NotComparable
from speceval.estimate import acceptance, gate
from speceval.estimate.gate import Verdict
from speceval.estimate.statistics import LEAST_EFFECTIVE


def run(rates: list[float], conversations: int = 200, steps: int = 100, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Counts of a simulated run: conditional rates per position, no other difference between conversations."""
    return {"suite": table(np.random.default_rng(seed), np.tile(rates, (conversations, 1)), steps)}


def table(rng: np.random.Generator, rates: np.ndarray, steps: int) -> pd.DataFrame:
    """Counts with conditional rates of shape (conversations, K); every step drafts K."""
    conversations, k = rates.shape
    reached = np.full((k, conversations), steps)
    accepted = np.zeros_like(reached)
    for j in range(k):
        if j:
            reached[j] = accepted[j - 1]
        accepted[j] = rng.binomial(reached[j], rates[:, j])
    columns = {"steps": steps, "drafted": k * steps, "accepted": accepted.sum(0), "committed": steps + accepted.sum(0)}
    columns |= {f"accepted_{j + 1}": accepted[j] for j in range(k)}
    columns |= {f"drafted_{j + 1}": steps for j in range(k)}
    columns |= {f"reached_{j + 1}": reached[j] for j in range(k)}
    return pd.DataFrame(columns, index=[f"c{i}" for i in range(conversations)])


def verdict(
    base: dict[str, pd.DataFrame], new: dict[str, pd.DataFrame], margin: float = 0.02, **more: float
) -> Verdict:
    return gate.check(base, new, margin, **more).verdict


GOOD = [0.6, 0.6, 0.6]


def test_counts_agree_with_the_estimators_of_a_run() -> None:
    rng = np.random.default_rng(0)
    drafted = rng.integers(0, 5, 500)
    steps = pd.DataFrame(
        {
            "conversation": rng.choice(list("abcd"), 500),
            "drafted": drafted,
            "accepted": rng.integers(0, drafted + 1),
            "committed": 1,
        }
    )
    turns = pd.DataFrame({"conversation": list("abcde")})
    counts = gate.count(steps, turns, k=4)
    assert list(counts.index) == list("abcde") and (counts.loc["e"] == 0).all()
    pd.testing.assert_frame_equal(
        counts.loc[list("abcd"), ["steps", "drafted", "accepted", "committed"]],
        acceptance.conversation_totals(steps).sort_index(),
        check_names=False,
    )
    for position in acceptance.positions(steps, 4).itertuples():
        for name in ("accepted", "drafted", "reached"):
            assert counts[f"{name}_{position.position}"].sum() == getattr(position, name)


def test_the_same_drafter_passes_and_large_losses_fail() -> None:
    base = run(GOOD)
    assert verdict(base, base) is Verdict.ok
    assert verdict(base, run(GOOD, seed=1)) is Verdict.ok
    assert verdict(base, run([0.66, 0.6, 0.6], seed=1)) is Verdict.ok
    assert verdict(base, run([0.5, 0.5, 0.5], seed=1)) is Verdict.fail


def test_a_loss_near_the_margin_is_inconclusive_with_the_number_that_would_settle_it() -> None:
    found = gate.check(run(GOOD, 40), run([0.585] * 3, 40, seed=1), 0.02).suites[0]
    assert found.verdict is Verdict.inconclusive
    assert found.needed is not None and found.needed > 40
    assert f"{found.needed - 40:,} more conversations" in found.reason


def test_the_number_asked_for_settles_it_in_four_of_five_cases() -> None:
    """400 checks at the number for the true change: sd 2 points around 80 %; one quantile left out gives 50 %."""
    true_change, spread, margin = -0.5, 20.0, 2.0
    needed = gate.conversations_needed(margin + true_change, spread, gate.LEVEL)
    assert needed is not None
    rng = np.random.default_rng(0)
    draws = rng.normal(true_change, spread, (400, needed))
    bound = draws.mean(1) - student.ppf(1 - gate.LEVEL, needed - 1) * draws.std(1, ddof=1) / np.sqrt(needed)
    assert 0.70 < (bound > -margin).mean() < 0.90


@pytest.mark.parametrize(("gap", "spread"), [(0.0, 1.0), (1e-9, 1.0)])
def test_no_number_settles_an_estimate_at_the_margin(gap: float, spread: float) -> None:
    assert gate.conversations_needed(gap, spread, 0.05) is None


@pytest.mark.slow
def test_at_the_margin_pass_and_fail_are_both_rare() -> None:
    """1,500 runs of 80 unequal conversations that lost exactly the margin of tau, evenly over three positions.

    If both rates are 5 %, a bound of 7.8 % is broken with probability 5e-7 each; at twice the level (a two-sided 95 %
    taken for a one-sided one, say) always.
    """
    rng = np.random.default_rng(5)
    margin, draws, passes, fails = 0.05, 1500, 0, 0
    base_rates = np.clip(rng.beta(6, 4, (80, 1)) * np.ones((80, 3)), 0.05, 0.95)
    tau = 1 + np.cumprod(base_rates, axis=1).sum(1).mean()
    low, high = 0.5, 1.0
    for _ in range(60):  # the factor on every rate that loses exactly the margin
        kept = (low + high) / 2
        lost = 1 - (1 + np.cumprod(kept * base_rates, axis=1).sum(1).mean()) / tau
        low, high = (kept, high) if lost > margin else (low, kept)
    for _ in range(draws):
        found = verdict({"s": table(rng, base_rates, 40)}, {"s": table(rng, kept * base_rates, 40)}, margin)
        passes += found is Verdict.ok
        fails += found is Verdict.fail
    assert passes / draws < 0.078
    assert fails / draws < 0.078
    undamaged = [table(rng, base_rates, 40) for _ in range(101)]
    ok = [verdict({"s": a}, {"s": b}, margin) is Verdict.ok for a, b in pairwise(undamaged)]
    assert np.mean(ok) > 0.5  # or it never says anything; 0.9 in truth: 1e-20


def test_a_loss_that_other_positions_make_up_for_fails_by_its_position() -> None:
    found = gate.check(run(GOOD), run([0.52, 0.7, 0.8], seed=1), 0.02).suites[0]
    assert found.tau_verdict is Verdict.ok
    assert found.verdict is Verdict.fail
    assert [row.failed for row in found.positions] == [True, False, False]
    assert found.reason.startswith("position 1 lost 1")


def hard_and_easy(first: float, seed: int, conversations: int = 400) -> dict[str, pd.DataFrame]:
    """Half of the conversations accept 0.85 at every position, the hard half `first`, 0.45, 0.5, 0.5 and 0.5."""
    rates = np.where(np.arange(conversations)[:, None] % 2, [[0.85] * 5], [[first, 0.45, 0.5, 0.5, 0.5]])
    return {"s": table(np.random.default_rng(seed), rates, 60)}


def test_a_gain_at_the_first_position_of_hard_prompts_fails_no_later_position() -> None:
    """More hard steps reach position 2: its pooled rate falls by 7 %, the rate of every conversation is what it was.

    Noise of its standardised change is 0.7 %: a wrong fail at 2.5 % / 5 of one-sided tests that all lie 3 and more
    standard errors above their margin has a probability below 1e-6 in 20 draws.
    """
    for seed in range(20):
        base, new = hard_and_easy(0.25, seed), hard_and_easy(0.6, 100 + seed)
        pooled = [float(run["s"]["accepted_2"].sum() / run["s"]["reached_2"].sum()) for run in (base, new)]
        assert pooled[1] < 0.95 * pooled[0]
        found = gate.check(base, new, 0.02).suites[0]
        assert found.verdict is Verdict.ok
        assert found.positions[1].change_percent > -4


def hard_and_easy_steps(first: float, seed: int, conversations: int = 400) -> dict[str, pd.DataFrame]:
    """Half of the steps of every conversation accept 0.85 at every position, the hard half as in `hard_and_easy`."""
    rng = np.random.default_rng(seed)
    halves = [np.tile(rates, (conversations, 1)) for rates in ([0.85] * 5, [first, 0.45, 0.5, 0.5, 0.5])]
    return {"s": sum(table(rng, half, 30) for half in halves)}


def test_a_gain_in_the_hard_steps_of_every_conversation_fails_no_later_position() -> None:
    """As above, within each conversation: 0.25 to 0.6 in its hard steps, and position 2 of those that reach it falls
    from 0.76 to 0.68 in every one of them.
    """
    for seed in range(20):
        base, new = hard_and_easy_steps(0.25, seed), hard_and_easy_steps(0.6, 100 + seed)
        reached = [run["s"]["accepted_2"].sum() / run["s"]["reached_2"].sum() for run in (base, new)]
        assert reached[1] < 0.92 * reached[0]
        found = gate.check(base, new, 0.02).suites[0]
        assert found.verdict is Verdict.ok and found.positions[1].change_percent > 10
        assert any("share of all steps" in line for line in found.warnings)


def expected(first: float, easy_share: np.ndarray, steps: int = 100) -> dict[str, pd.DataFrame]:
    """What conversations are expected to count whose easy steps accept 0.97, the others `first`, then 0.1."""
    easy, hard = np.cumprod([0.97] * 5), np.cumprod([first, 0.1, 0.1, 0.1, 0.1])
    reached = np.outer(easy_share, [1, *easy]) + np.outer(1 - easy_share, [1, *hard])
    accepted = steps * reached[:, 1:]
    columns = {"steps": steps, "accepted": accepted.sum(1)}
    columns |= {f"accepted_{j}": accepted[:, j - 1] for j in range(1, 6)}
    columns |= {f"reached_{j}": steps * reached[:, j - 1] for j in range(1, 6)}
    return {"s": pd.DataFrame(columns, index=[f"c{i}" for i in range(len(easy_share))])}


def test_a_gain_in_hopeless_steps_that_hardly_raises_tau_fails_no_later_position() -> None:
    """Drafts that are all right or all wrong: a few more right at position 1 of the wrong ones, and position 2 of
    those that reach it falls by 7 %, in a tau whose rise of 2 % the noise of the easy steps' share hides.
    """
    share = np.linspace(0.3, 0.7, 100)
    base, new = expected(0.02, share), expected(0.1, share + 0.1 * np.tile([1, -1, -1, 1], 25))
    found = gate.check(base, new, 0.02).suites[0]
    second = found.positions[1]
    assert -8 < second.change_percent < -6 and second.margin_percent < 4
    assert not any("tau has risen" in line for line in found.warnings)
    assert found.verdict is not Verdict.fail and second.p_adjusted == 1


@pytest.mark.parametrize(("gain", "share"), [(0.26, 0.15), (0.6, 0.4)], ids=["tau is the same", "tau has risen"])
def test_a_loss_at_one_position_is_still_seen_behind_a_gain_at_another(gain: float, share: float) -> None:
    base, new = hard_and_easy(0.25, 1), hard_and_easy(gain, 2)
    broken = new["s"].copy()
    lost = (broken["accepted_3"] * share).astype(int)
    for j in (3, 4, 5):
        broken[f"accepted_{j}"] = np.maximum(broken[f"accepted_{j}"] - lost, 0)
    for j in (4, 5):
        broken[f"reached_{j}"] = broken[f"accepted_{j - 1}"]
    broken["accepted"] = sum(broken[f"accepted_{j}"] for j in range(1, 6))
    found = gate.check(base, {"s": broken}, 0.02).suites[0]
    assert found.verdict is Verdict.fail and found.positions[2].failed


@pytest.mark.parametrize("conversations", [2, 20, LEAST_EFFECTIVE - 1])
def test_few_conversations_never_pass_since_a_rare_loss_may_be_in_none_of_them(conversations: int) -> None:
    base = run(GOOD, conversations, steps=5000)
    found = gate.check(base, run(GOOD, conversations, steps=5000, seed=1), 0.02).suites[0]
    assert found.verdict is Verdict.inconclusive
    assert found.needed is not None and found.needed >= LEAST_EFFECTIVE
    assert any("fewer than 36" in line for line in found.warnings)


def test_many_conversations_of_which_a_few_accept_nearly_all_do_not_pass() -> None:
    """100 conversations, five of them with 200 times the steps: they count as about five."""
    steps = np.where(np.arange(100) < 5, 20_000, 100)
    base, new = (
        pd.concat([table(np.random.default_rng([seed, i]), np.full((1, 2), 0.6), n) for i, n in enumerate(steps)])
        for seed in (1, 2)
    )
    for part in (base, new):
        part.index = [f"c{i}" for i in range(100)]
    found = gate.check({"s": base}, {"s": new}, 0.02).suites[0]
    assert found.verdict is Verdict.inconclusive
    assert 5 < found.effective < 6


def test_what_would_settle_a_check_is_never_so_few_that_no_error_rate_holds() -> None:
    found = gate.check(run(GOOD, 2), run([0.5] * 3, 2, steps=20), 0.02).suites[0]
    assert found.verdict is Verdict.inconclusive and found.change_percent["value"] < -2
    assert found.needed is not None and found.needed >= LEAST_EFFECTIVE


def test_an_inconclusive_check_says_what_checking_again_costs() -> None:
    found = gate.check(run(GOOD, 40), run([0.585] * 3, 40, seed=1), 0.02).suites[0]
    assert "every further check adds its own 5 % of wrong answers" in found.reason


def test_a_position_margin_of_ones_own_finds_a_broken_late_position() -> None:
    base, new = run([0.5, 0.4, 0.5]), run([0.5, 0.4, 0.40], seed=1)
    assert verdict(base, new, 0.05) is Verdict.ok
    assert verdict(base, new, 0.05, position_margin=0.1) is Verdict.fail


def test_without_gains_a_tau_within_the_margin_leaves_every_position_within_its_own() -> None:
    """3,000 random drafters and losses, whatever their shape: the theorem on which the position margins rest."""
    rng = np.random.default_rng(0)
    within = 0
    for _ in range(3000):
        base = rng.uniform(0.01, 1, rng.integers(1, 9))
        kept, margin = 1 - rng.random(len(base)) ** rng.integers(1, 9), rng.uniform(0.001, 0.5)
        survivors = np.cumprod(base)
        counts = gate._Run(
            steps=np.array([1e6]),
            tokens=np.array([1e6 * (1 + survivors.sum())]),
            accepted=1e6 * survivors[:, None],
            reached=1e6 * np.array([1.0, *survivors[:-1]])[:, None],
        )
        if 1 - (1 + np.cumprod(kept * base).sum()) / (1 + survivors.sum()) <= margin:
            within += 1
            margins = np.array(gate._position_margins(counts, margin)) + 1e-9
            assert all(1 - kept <= margins) and all(1 - np.cumprod(kept) <= margins)
    assert within > 500


def test_late_positions_with_few_drafts_are_not_tested_and_do_not_stand_in_the_way() -> None:
    base, new = run([0.5, 0.05, 0.05], 100, 20), run([0.52, 0.05, 0.0], 100, 20, seed=1)
    found = gate.check(base, new, 0.05, position_margin=0.05).suites[0]
    assert found.verdict is Verdict.ok
    assert found.positions[2].p_value is None and not found.positions[2].failed


def test_a_position_that_accepts_nothing_any_more_fails_though_its_own_spread_is_zero() -> None:
    found = gate.check(run(GOOD), run([0.6, 0.6, 0.0], seed=1), 0.02).suites[0]
    assert found.positions[2].failed and found.positions[2].new == 0
    assert found.positions[2].change_percent == -100


def test_suites_are_judged_one_by_one_and_the_worst_counts() -> None:
    base = {"a": run(GOOD)["suite"], "b": run(GOOD, seed=2)["suite"]}
    new = {"a": run(GOOD, seed=3)["suite"], "b": run([0.5] * 3, seed=4)["suite"]}
    found = gate.check(base, new, 0.02)
    assert [suite.verdict for suite in found.suites] == [Verdict.ok, Verdict.fail]
    assert (found.verdict, found.exit_code) == (Verdict.fail, 1)


def test_all_tests_of_a_check_share_the_false_alarms() -> None:
    base = {name: run(GOOD, 30, seed=n)["suite"] for n, name in enumerate("abcd")}
    new = {name: run([0.57, 0.58, 0.58], 30, seed=10 + n)["suite"] for n, name in enumerate("abcd")}
    suites = gate.check(base, new, 0.02).suites
    taus = sorted((suite.p_value, suite.p_adjusted) for suite in suites)
    assert taus[0][1] == pytest.approx(min(1, 2 * 4 * taus[0][0]))
    rows = sorted((row.p_value, row.p_adjusted) for suite in suites for row in suite.positions)
    assert rows[0][1] == pytest.approx(min(1, 2 * 12 * rows[0][0]))


def test_conversations_of_one_run_alone_are_left_out_and_counted() -> None:
    base, new = run(GOOD), run(GOOD, seed=1)
    found = gate.check({"suite": base["suite"].iloc[:150]}, {"suite": new["suite"].iloc[50:180]}, 0.02).suites[0]
    assert (found.conversations, found.only_base, found.only_new) == (100, 50, 30)


def test_runs_without_a_common_conversation_or_suite_are_not_comparable() -> None:
    base, new = run(GOOD), run(GOOD, seed=1)
    with pytest.raises(NotComparable, match="no conversation in common"):
        gate.check({"suite": base["suite"].iloc[:50]}, {"suite": new["suite"].iloc[50:]}, 0.02)
    with pytest.raises(NotComparable, match="no suite in common"):
        gate.check(base, {"other": new["suite"]}, 0.02)


def test_another_k_compares_tau_and_the_common_positions() -> None:
    found = gate.check(run(GOOD), run([*GOOD, 0.6], seed=1), 0.02).suites[0]
    assert len(found.positions) == 3
    assert found.verdict is Verdict.ok and found.new_tau > found.base_tau + 0.05


NOTHING = [0.0, 0.0]
ALL = [1.0, 1.0]


@pytest.mark.parametrize(
    ("base", "new", "expected"),
    [
        (run(GOOD, 1), run(GOOD, 1), Verdict.inconclusive),
        (run(GOOD, 2), run(GOOD, 2), Verdict.inconclusive),
        (run(NOTHING), run(NOTHING), Verdict.ok),
        (run(ALL), run(ALL), Verdict.ok),
        (run(ALL), run(NOTHING), Verdict.fail),
        (run(NOTHING), run(ALL), Verdict.ok),
        (run([0.5]), run([0.5], seed=1), Verdict.ok),
        (run(GOOD, steps=0), run(GOOD, steps=0), Verdict.inconclusive),
        (run(GOOD), run(GOOD, steps=0), Verdict.inconclusive),
    ],
    ids=["one", "two alike", "nothing", "all", "lost all", "gained all", "K=1", "no drafts", "no drafts any more"],
)
def test_degenerate_runs_give_a_word_and_no_nan(base, new, expected: Verdict) -> None:
    found = gate.check(base, new, 0.02)
    assert found.verdict is expected
    json.dumps(found.as_json(), allow_nan=False)
    assert found.suites[0].reason


def test_the_stored_verdicts_on_damaged_drafters_are_those_of_the_stored_counts() -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "gate_zoo.py"
    spec = importlib.util.spec_from_file_location("gate_zoo", script)
    assert spec is not None and spec.loader is not None
    gate_zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gate_zoo)
    found, stored = gate_zoo.verdicts(pd.read_csv(gate_zoo.COUNTS)), pd.read_csv(gate_zoo.CSV)
    assert list(found["verdict"]) == list(stored["verdict"])
    assert found["change_low_percent"].to_numpy() == pytest.approx(stored["change_low_percent"].to_numpy(), rel=1e-3)
    same = stored["drafter"].str.startswith("same weights")
    assert same.sum() == 2 and not (stored["verdict"] == "pass").any()  # 24 conversations can miss a rare loss
    assert (stored.loc[same, "verdict"] == "inconclusive").all() and (stored.loc[same, "needed"] < 60).all()
    assert (stored.loc[stored["change_value_percent"] < -5, "verdict"] == "fail").all()


def ngram(share: float, accepted: float, seed: int, conversations: int = 80, steps: int = 100) -> pd.DataFrame:
    """A drafter that has drafts in a `share` of the decode steps, and accepts the first of two with this chance."""
    rng = np.random.default_rng(seed)
    drafted = rng.binomial(steps, share, conversations)
    first = rng.binomial(drafted, accepted)
    second = rng.binomial(first, accepted)
    columns = {"steps": drafted, "undrafted": steps - drafted, "drafted": 2 * drafted, "accepted": first + second}
    columns |= {"committed": drafted + first + second, "accepted_1": first, "accepted_2": second}
    columns |= {"drafted_1": drafted, "drafted_2": drafted, "reached_1": drafted, "reached_2": first}
    return pd.DataFrame(columns, index=[f"c{i}" for i in range(conversations)])


def test_a_drafter_that_drafts_more_often_is_judged_by_all_decode_steps() -> None:
    """A tenth of the steps with 0.9 + 0.81 accepted, or half with 0.5 + 0.25: 1.17 tokens a step, or 1.375."""
    seldom, often = ngram(0.1, 0.9, 1), ngram(0.5, 0.5, 2)
    found = gate.check({"s": seldom}, {"s": often}, 0.02).suites[0]
    assert found.verdict is Verdict.ok and found.every_step
    assert (found.base_tau, found.new_tau) == (pytest.approx(1.17, abs=0.02), pytest.approx(1.375, abs=0.02))
    back = gate.check({"s": often}, {"s": seldom}, 0.02).suites[0]
    assert back.verdict is Verdict.fail and back.change_percent["value"] == pytest.approx(-14.9, abs=1.5)


def test_conversations_in_which_nothing_is_drafted_any_more_count() -> None:
    base = ngram(0.5, 0.5, 1)
    new = ngram(0.5, 0.5, 2)
    new.iloc[:40] = ngram(0.0, 0.5, 3).iloc[:40]
    found = gate.check({"s": base}, {"s": new}, 0.02).suites[0]
    assert found.conversations == 80 and found.verdict is Verdict.fail


def test_a_few_steps_without_drafts_change_nothing() -> None:
    base, new = ngram(0.995, 0.5, 1), ngram(0.995, 0.5, 2)
    found = gate.check({"s": base}, {"s": new}, 0.02).suites[0]
    assert not found.every_step and found.base_tau == pytest.approx(1 + base["accepted"].sum() / base["steps"].sum())


def test_a_baseline_that_does_not_tell_of_steps_without_drafts_is_not_compared_with_a_run_of_many() -> None:
    base, new = ngram(0.5, 0.5, 1).drop(columns="undrafted"), ngram(0.5, 0.5, 2)
    with pytest.raises(NotComparable, match="suite s: many steps of one had no drafts, and the other does not tell"):
        gate.check({"s": base}, {"s": new}, 0.02)
    assert gate.check({"s": base}, {"s": ngram(1, 0.5, 2)}, 0.02).suites[0].every_step is False


@pytest.mark.parametrize(("conversations", "verdict"), [(2, "inconclusive"), (35, "inconclusive"), (36, "fail")])
def test_few_conversations_that_all_lose_the_same_are_no_proof(conversations: int, verdict: str) -> None:
    """Short answers are alike by chance: two conversations of one step each, say."""
    base, new = (run([rate], conversations, steps=1) for rate in (1.0, 0.0))
    found = gate.check(base, new, 0.02).suites[0]
    assert found.verdict == verdict and found.change_percent["se"] == 0
    assert verdict == "fail" or found.needed == LEAST_EFFECTIVE


def test_a_fail_of_few_conversations_says_that_it_can_be_wrong_more_often() -> None:
    for conversations, told in ((20, True), (60, False)):
        found = gate.check(run(GOOD, conversations), run([0.4] * 3, conversations, seed=1), 0.02).suites[0]
        assert found.verdict is Verdict.fail
        assert ("more than 5 % of fails can be wrong" in found.reason) is told
