"""The tests of `speceval verify` without an engine: quiet on a right sampler, loud on wrong ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from support import simulated
from support.mutants import MUTANTS, Mutant, mutated
from support.simulated import Chain, plan, simulate, softmax

from speceval import catalog
from speceval.engines.base import Order
from speceval.engines.simulated import SimulatedEngine
from speceval.errors import UserError
from speceval.exactness import law
from speceval.exactness.checks import (
    ACCEPTED,
    DRAFTED,
    FAVOURED,
    JOINT,
    RANKS,
    SUPPORT,
    TOKENS,
    VERIFIED,
    exact_checks,
    planned,
    two_sample_checks,
)
from speceval.exactness.draw import BONUS, FIRST, Plan, draw
from speceval.exactness.reference import Filter
from speceval.exactness.run import SAMPLES, Settings
from speceval.exactness.verdict import ALPHA

pytestmark = pytest.mark.slow


K = 3
LEVEL = ALPHA / planned(K, 6)


def judge(samples: int, seed: int, fault: str = "", temperature: float = 1.0) -> dict[tuple[str, str], float]:
    asked = plan(samples, temperature=temperature)
    checks = exact_checks(asked, simulate(asked, K, seed, fault), Chain(), K, LEVEL)  # type: ignore[arg-type]
    return {(check.kind, check.where): check.p for check in checks if check.p is not None}


def test_every_slot_of_the_step_and_the_joint_law_are_tested() -> None:
    places = {"token 1", "draft 1", "draft 2", "draft 3", "bonus", VERIFIED}
    found = judge(4000, seed=0)
    assert {where for kind, where in found if kind == TOKENS} == places
    assert {where for kind, where in found if kind == RANKS} == places
    assert (JOINT, "first tokens") in found


def test_p_values_of_a_right_sampler_are_uniform() -> None:
    """25 runs: each kind of test's p-values pass a Kolmogorov test at 1e-8, and none is below the level in use."""
    runs = [judge(1200, seed) for seed in range(25)]
    for key in ((JOINT, "first tokens"), (TOKENS, "draft 1"), (TOKENS, VERIFIED), (RANKS, VERIFIED)):
        values = [run[key] for run in runs]
        assert stats.kstest(values, "uniform").pvalue > 1e-8, key
        # Not merely quiet: a test that always said 1 would pass none of this.
        assert min(values) < 0.3 and max(values) < 1
    assert min(p for run in runs for p in run.values()) > LEVEL


@pytest.mark.parametrize(
    ("fault", "temperature"),
    [("no temperature", 0.7), ("no temperature", 1.3), ("half residual", 1.0), ("shared", 1.0)],
)
def test_a_wrong_sampler_is_caught(fault: str, temperature: float) -> None:
    """6000 continuations: least clear is a noise shared by draft and recovery, seen by the replacements alone."""
    found = judge(6000, seed=5, fault=fault, temperature=temperature)
    print({key: p for key, p in found.items() if p < LEVEL})
    assert min(found.values()) < LEVEL


def test_a_bias_shared_by_all_positions_shows_best_over_all_of_them() -> None:
    """3000 continuations whose drafts are accepted a tenth too easily: no single position tells, all together do."""
    found = judge(3000, seed=7, fault="eager")
    print({key: p for key, p in found.items() if key[0] in (ACCEPTED, FAVOURED)})
    for kind in (ACCEPTED, FAVOURED):
        assert found[kind, DRAFTED] < min(found[kind, f"draft {j}"] for j in (1, 2, 3))
    assert found[FAVOURED, DRAFTED] < LEVEL


def test_no_more_tests_are_made_than_the_error_rate_is_shared_among() -> None:
    asked = plan(2000)
    drawn = simulate(asked, K, seed=8)
    assert len(exact_checks(asked, drawn, Chain(), K, LEVEL)) <= planned(K, asked.tokens)  # type: ignore[arg-type]
    drawn.undrafted = 1  # then the place in the continuation is the label
    assert len(exact_checks(asked, drawn, Chain(), K, LEVEL)) <= planned(K, asked.tokens)  # type: ignore[arg-type]


def test_the_verifier_s_wrong_temperature_leaves_the_first_token_alone() -> None:
    found = judge(4000, seed=6, fault="no temperature", temperature=0.7)
    assert found[TOKENS, "token 1"] > 1e-6
    assert found[TOKENS, "draft 1"] < LEVEL and found[TOKENS, "bonus"] < 1e-4


def test_two_samples_are_told_apart_only_when_they_differ() -> None:
    asked = plan(6000, temperature=0.7)
    alone = simulate(asked, 0, seed=10).tokens
    right = two_sample_checks(asked, simulate(asked, K, seed=11), alone, LEVEL)
    wrong = two_sample_checks(asked, simulate(asked, K, seed=11, fault="no temperature"), alone, LEVEL)
    assert min(check.p for check in right if check.p is not None) > 1e-6
    assert min(check.p for check in wrong if check.p is not None) < LEVEL


def test_a_bias_that_a_fold_by_token_id_would_hide_is_seen_by_the_row_that_decides() -> None:
    """Token ids shifted by 64, the padding of vLLM's vocabularies: the same classes modulo 64."""
    generator = np.random.default_rng(4)
    asked = plan(3000)
    shifted = [
        tuple((generator.integers(0, 64, asked.tokens) + 64 * shift).tolist()) for shift in (0, 1) for _ in range(3000)
    ]
    drawn = replace(simulate(asked, K, seed=1), tokens=shifted[:3000], recorded=None)
    [decides] = [
        c for c in two_sample_checks(asked, drawn, shifted[3000:], LEVEL) if (c.kind, c.where) == (TOKENS, VERIFIED)
    ]
    assert decides.p is not None and decides.p < LEVEL and decides.groups == 64
    zipf = 1 / np.arange(1, 128 + 1)
    halves = [np.bincount(law.fold(ids, 64, 0), zipf / zipf.sum(), 64) for ids in (np.arange(128), np.arange(128) ^ 64)]
    assert 0.5 * np.abs(halves[0] - halves[1]).sum() > 0.3
    assert (law.fold(np.arange(128), 64, 0) != law.fold(np.arange(128), 64, 1)).mean() > 0.9


def clusters(n: int, seed: int, again: float, law_: np.ndarray, tokens: int = 8) -> np.ndarray:
    """Counts [n, cells] of continuations in which a token repeats the one before with probability `again`."""
    generator = np.random.default_rng(seed)
    drawn = generator.choice(len(law_), (n, tokens), p=law_)
    for t in range(1, tokens):
        same = generator.random(n) < again
        drawn[same, t] = drawn[same, t - 1]
    return np.stack([np.bincount(row, minlength=len(law_)) for row in drawn]).astype(float)


SMALL = np.full(16, 1 / 16)


def test_all_tokens_of_continuations_are_compared_as_often_wrong_as_promised() -> None:
    """Tokens that depend on each other: 300 p-values are uniform (Kolmogorov, 1e-8); taken as independent not."""
    values, naive = [], []
    for seed in range(300):
        a, b = (clusters(400, 2 * seed + side, 0.6, SMALL) for side in (0, 1))
        values.append(law.of_clusters([(a[:200], b[:200]), (a[200:], b[200:])], LEVEL).p)
        naive.append(law.two_samples(a.sum(0), b.sum(0), LEVEL).p)
    assert stats.kstest(values, "uniform").pvalue > 1e-8
    assert stats.kstest(naive, "uniform").pvalue < 1e-8


@pytest.mark.parametrize("again", [0.0, 0.6])
def test_a_bias_of_the_size_that_clusters_name_is_detected_nine_times_in_ten(again: float) -> None:
    """The hardest shape of independent tokens; for dependent ones the size named is on the safe side."""
    level, seen = 1e-4, []
    for seed in range(100):
        a = clusters(1000, 3 * seed, again, SMALL)
        t = law.of_clusters([(a, clusters(1000, 3 * seed + 1, again, SMALL))], level).detectable
        biased = SMALL * np.repeat([1 + 2 * t, 1 - 2 * t], 8)
        seen.append(law.of_clusters([(a, clusters(1000, 3 * seed + 2, again, biased))], level).p < level)
    assert np.mean(seen) > 0.74 and (again or np.mean(seen) < 0.995)


def test_the_default_number_of_continuations_can_say_exact_in_both_modes() -> None:
    """Tokens that repeat more often than not, which makes the continuations' sums vary twice as much."""
    n, zipf = SAMPLES["two-sample"] // 20, 1 / np.arange(1, 65)
    fit = law.of_clusters([(clusters(n, 0, 0.5, zipf / zipf.sum()), clusters(n, 1, 0.5, zipf / zipf.sum()))], LEVEL)
    assert fit.detectable / np.sqrt(20) < Settings().bias
    assert law.detectable(63, 7 * SAMPLES["exact"], LEVEL) < Settings().bias


def test_slots_tell_drafts_from_the_bonus_and_the_prefill() -> None:
    asked = plan(200)
    found = simulate(asked, K, seed=3)
    assert all(slots[0] == FIRST for slots in found.slots)
    for slots in found.slots:
        after = {FIRST: {1}, BONUS: {1}, 1: {1, 2}, 2: {1, 3}, 3: {1, BONUS}}
        assert all(b in after[a] for a, b in pairwise(slots))


# ------------------------------------------------------------------------------------------------------- the pieces


def test_freedman_s_bound_is_never_below_the_exact_tail() -> None:
    for n, rate in ((40, 0.02), (500, 0.02), (3000, 0.4)):
        for hits in range(n + 1):
            found = law.drift(
                np.repeat([1, 0], [hits, n - hits]), np.full(n, rate), np.full(n, rate * (1 - rate)), 1e-9
            )
            side = stats.binom.sf(hits - 1, n, rate) if hits > n * rate else stats.binom.cdf(hits, n, rate)
            assert found.p >= min(1.0, side) * (1 - 1e-9)
            if found.p < 1e-30:
                break


def test_a_shift_of_the_size_named_detectable_is_detected_nine_times_in_ten() -> None:
    n, rate, level = 20000, 0.4, 1e-9
    variance = np.full(n, rate * (1 - rate))
    shift = law.drift(np.zeros(n), np.full(n, rate), variance, level).detectable
    hits = np.random.default_rng(0).binomial(n, rate + shift, 400)
    seen = [law.drift(np.repeat([1, 0], [h, n - h]), np.full(n, rate), variance, level).p < level for h in hits]
    assert 0.84 < np.mean(seen) < 0.96


def test_a_law_of_the_size_named_detectable_is_detected_nine_times_in_ten() -> None:
    """The hardest shape: each cell of one half of the mass gains in proportion to its probability."""
    n, level, share = 20000, 1e-9, np.full(20, 0.05)
    t = law.pearson(n * share, n * share, level).detectable
    biased = share * np.repeat([1 + 2 * t, 1 - 2 * t], 10)
    counts = np.random.default_rng(1).multinomial(n, biased, 400).astype(float)
    assert 0.84 < np.mean([law.pearson(n * share, row, level).p < level for row in counts]) < 0.96


def test_the_rank_transform_of_tokens_from_any_laws_is_uniform() -> None:
    rng = np.random.default_rng(2)
    laws = softmax(rng.normal(0, 3, (20000, 30)))
    tokens = np.array([rng.choice(30, p=row) for row in laws])
    values = law.rank_transform(laws, tokens, rng.random(len(tokens)))
    assert stats.kstest(values, "uniform").pvalue > 1e-8
    assert law.uniform(values, 1e-9).p > 1e-8
    wrong = law.rank_transform(softmax(np.log(laws) * 0.9), tokens, rng.random(len(tokens)))
    assert law.uniform(wrong, 1e-9).p < 1e-9


def test_truncation_is_vllm_s_own() -> None:
    """Temperature, then top-k, then top-p, against the function that vLLM samples with."""
    import torch

    sampler = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
    logits = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    for temperature, top_k, top_p in ((1.0, 0, 1.0), (0.7, 8, 0.9), (1.3, 0, 0.5), (1.0, 3, 1.0)):
        k = torch.full((500,), top_k) if top_k else None
        p = torch.full((500,), top_p) if top_p < 1 else None
        expected = sampler.apply_top_k_top_p(logits.clone() / temperature, k, p).softmax(-1).numpy()
        laws, certain = Filter(temperature, top_k, top_p).laws(logits.numpy())
        assert certain.mean() > 0.9
        assert np.abs(laws[certain] - expected[certain]).max() < 1e-5


def test_a_support_that_hangs_on_rounding_is_not_certain() -> None:
    near_tie = np.array([[2.0, 1.0, 1.0 - 1e-5, 0.0]])
    assert not Filter(1.0, 2, 1.0).laws(near_tie)[1][0]
    assert Filter(1.0, 1, 1.0).laws(near_tie)[1][0]
    half = np.log(np.array([[0.5, 0.3, 0.2]]))
    assert not Filter(1.0, 0, 0.5).laws(half)[1][0]
    assert Filter(1.0, 0, 0.6).laws(half)[1][0]


def test_a_token_at_the_edge_of_the_support_may_be_an_engines_that_rounds_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a GPU's does: its log-probabilities differ by a few thousandths, and with them which token is the second."""
    theirs = simulated.TARGET.copy()
    second, third = np.argsort(-theirs[3])[1:3]
    theirs[3, third] = theirs[3, second] - 0.004
    ours = theirs.copy()
    ours[3, [second, third]] = theirs[3, [third, second]]
    asked = replace(plan(2000), top_k=2)
    kept = np.where(theirs < -np.sort(-theirs, 1)[:, 1:2], -np.inf, theirs)
    monkeypatch.setattr(simulated, "TARGET", kept)
    drawn = simulate(asked, K, 0)
    monkeypatch.setattr(simulated, "TARGET", ours)
    failed = []
    for difference in (0.0, 0.002):
        checks = exact_checks(asked, drawn, Chain(), K, LEVEL, difference)  # type: ignore[arg-type]
        failed.append([check.kind for check in checks if check.p is not None and check.p < LEVEL])
    assert SUPPORT in failed[0] and failed[1] == []


def test_nothing_is_said_of_an_engine_whose_kernels_left_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = catalog.resolve("zoo", "lk-eagle3")
    engine = SimulatedEngine.open(Order("simulated", pair.target, pair.draft, K, "probabilistic", 1.0, batch=2))
    asked = Plan([[1], [2]], 20, 4, 1.0, 0, 1.0, True, 0.0, 0)
    engine._counters.kernel_strays = 7  # of what ran before
    assert len(draw(engine, asked, lambda done, total: None).tokens) == 20
    count = engine.counters
    strays = iter([7, 9])
    monkeypatch.setattr(engine, "counters", lambda: replace(count(), kernel_strays=next(strays)))
    with pytest.raises(UserError, match="read or wrote 2 times outside their tensors"):
        draw(engine, asked, lambda done, total: None)


def test_greedy_requests_are_spread_over_prompts_and_make_up_their_share() -> None:
    asked = Plan([[1], [2]], 400, 4, 1.0, 0, 1.0, True, 0.25, 0)
    greedy = [asked.greedy(i) for i in range(400)]
    assert sum(greedy) == 100
    assert {asked.prompt(i) for i in range(400) if greedy[i]} == {0, 1}
    assert all((asked.sampling(i).temperature == 0) == greedy[i] for i in range(400))
    assert len({asked.sampling(i).seed for i in range(400)}) == 400


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_fits_the_code_it_edits_and_leaves_nothing_behind(mutant: Mutant) -> None:
    """An edit that no longer applies would be a mutant that is never caught."""
    import importlib
    from operator import attrgetter

    functions = [attrgetter(name)(importlib.import_module(module)) for module, name, _, _ in mutant.edits]
    before = [function.__code__ for function in functions]
    with mutated(mutant):
        assert all(function.__code__ is not code for function, code in zip(functions, before, strict=True))
    assert [function.__code__ for function in functions] == before
