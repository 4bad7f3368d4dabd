"""Clustered intervals: by hand, against textbook special cases, against the bootstrap, and by their coverage."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from support.bootstrap import bootstrap_ratio_interval

from speceval.estimate.statistics import (
    LEAST_EFFECTIVE,
    cluster_warnings,
    detectable,
    effective_clusters,
    holm,
    p_value_below,
    paired_ratio_difference,
    proportion_interval,
    ratio_estimates,
    ratio_interval,
    variance_components,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def simulation() -> SimpleNamespace:
    """The functions of scripts/coverage.py, which makes the table in docs/trust/how-sure.md."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "coverage.py"), run_name="coverage"))


@pytest.fixture(scope="module")
def runs(simulation: SimpleNamespace) -> tuple[dict, dict]:
    """Counts per conversation of two runs over 20,000 simulated conversations: Beta acceptance, correlated steps."""
    return simulation.population(simulation.SCENARIOS["even"], 20_000, seed=1)


def known(number: float | None) -> float:
    assert number is not None
    return number


class TestRatioInterval:
    def test_by_hand(self) -> None:
        """x = 9, 5, 4; y = 4, 2, 2: R = 18/8; e = (9-9)/8, (5-4.5)/8, (4-4.5)/8; se² = 3/2 · 2/256 = 3/256."""
        found = ratio_interval([9, 5, 4], [4, 2, 2])
        assert found.value == 2.25
        assert found.se == pytest.approx(np.sqrt(3) / 16)
        assert (found.clusters, found.skew) == (3, 0)
        assert found.df == pytest.approx(169 / 97)  # S_2, S_3, S_4, S_5 = 3/8, 5/32, 9/128, 17/512
        half = stats.t.ppf(0.975, 169 / 97) * np.sqrt(3) / 16
        assert (found.low, found.high) == pytest.approx((2.25 - half, 2.25 + half))

    def test_equal_denominators_without_skew_give_the_one_sample_t_interval(self) -> None:
        half = np.random.default_rng(0).normal(0, 1, 12)
        x = 3 + np.concatenate([half, -half])
        found = ratio_interval(x, np.ones(24), confidence=0.9)
        expected = stats.ttest_1samp(x, 0).confidence_interval(0.9)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert found.se == pytest.approx(stats.sem(x))
        assert found.df == pytest.approx(23)

    def test_skewed_values_move_the_interval_as_hall_says(self) -> None:
        """x = 0, 0, 0, 4: mean 1, e = -1/4 (three) and 3/4; skew 24/64 / (12/16)^1.5; both bounds solve g(T) = ±t_3."""
        found = ratio_interval([0, 0, 0, 4], [1, 1, 1, 1])
        assert found.skew == pytest.approx(0.375 / 0.75**1.5)
        assert found.se == 1.0
        for bound, sign in ((known(found.low), 1), (known(found.high), -1)):
            t, a = (1 - bound) / 1.0, found.skew
            g = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
            assert g == pytest.approx(sign * stats.t.ppf(0.975, 3))
        assert known(found.high) - 1 > 1 - known(found.low)

    def test_degrees_of_freedom_are_those_of_the_quadratic_form(self) -> None:
        """Against 2 E[V]² / Var[V] of V = Σ w² (r - Σ w r)² written as a matrix, r independent with equal variance."""
        w = np.array([5.0, 3, 1, 1, 0.5])
        w /= w.sum()
        centre = np.eye(5) - np.outer(np.ones(5), w)
        form = centre.T @ np.diag(w**2) @ centre
        expected = np.trace(form) ** 2 / np.trace(form @ form)
        found = ratio_interval(np.arange(5), w)
        assert found.df == pytest.approx(expected)
        assert found.df < 3
        assert ratio_interval([1, 2], [1e-9, 1]).df == pytest.approx(1)

    def test_clusters_without_denominator_change_nothing(self) -> None:
        assert ratio_interval([9, 0, 5, 4, 0], [4, 0, 2, 2, 0]) == ratio_interval([9, 5, 4], [4, 2, 2])

    def test_order_of_clusters_does_not_matter(self) -> None:
        a, b = ratio_interval([9, 5, 4], [4, 2, 2]), ratio_interval([4, 9, 5], [2, 4, 2])
        assert a.as_dict() == pytest.approx(b.as_dict())

    def test_one_cluster_has_a_value_only_and_none_has_nothing(self) -> None:
        one, none = ratio_interval([9, 0], [4, 0]), ratio_interval([0], [0])
        assert (one.value, one.low, one.high, one.se, one.clusters, one.df) == (2.25, None, None, None, 1, 0)
        assert (none.value, none.low, none.high, none.se, none.clusters, none.df) == (None,) * 4 + (0, 0)
        assert ratio_interval([], []) == none

    def test_interval_is_cut_to_the_possible_values(self) -> None:
        found = ratio_interval([9, 5, 4], [4, 2, 2], bounds=(2.0, 2.5))
        assert (found.low, found.high) == (2.0, 2.5)

    def test_many_draws_at_once_give_the_same_as_one_by_one(self) -> None:
        rng = np.random.default_rng(1)
        y = rng.integers(0, 4, (7, 12))
        x = y * rng.random((7, 12))
        for i, many in enumerate(zip(*ratio_estimates(x, y), strict=True)):
            one = ratio_interval(x[i], y[i])
            value, se, clusters, df, skew, _, share = many
            expected = (value, se, clusters, df, skew, share)
            assert (one.value, one.se, one.clusters, one.df, one.skew, one.share) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("x", "y", "confidence", "what"),
        [
            ([1, 2], [1], 0.95, "one shape"),
            ([[1, 2]], [[1, 2]], 0.95, "one shape"),
            ([1, 2], [1, -1], 0.95, "negative"),
            ([1, 2], [1, 1], 95, "between 0 and 1"),
        ],
    )
    def test_bad_input_is_refused(self, x: list, y: list, confidence: float, what: str) -> None:
        with pytest.raises(ValueError, match=what):
            ratio_interval(x, y, confidence)


class TestBootstrap:
    def test_agrees_with_the_delta_method(self, runs: tuple[dict, dict], simulation: SimpleNamespace) -> None:
        """164 conversations, 4,000 replicates: the bootstrap's own noise in se is 1/sqrt(2·4000) = 1.1 %, and the two
        differ by a few percent at second order. 10 % is more than five times that noise beyond a 4 % bias, so false
        alarms are below 1e-6; steps taken as independent give an error that is 40 % too small, also checked."""
        picked = np.random.default_rng(0).integers(20_000, size=164)
        for name, (x, y) in simulation.terms(runs[0]).items():
            delta = ratio_interval(x[picked], y[picked])
            boot = bootstrap_ratio_interval(x[picked], y[picked], replicates=4000)
            assert boot.value == delta.value
            assert boot.se == pytest.approx(delta.se, rel=0.1), name
            assert (boot.low, boot.high) == pytest.approx((delta.low, delta.high), abs=0.5 * known(delta.se)), name
        steps, rate = runs[0]["steps"][picked].sum(), runs[0]["accepted_1"][picked].sum()
        independent = np.sqrt(rate / steps * (1 - rate / steps) / steps)
        clustered = ratio_interval(runs[0]["accepted_1"][picked], runs[0]["steps"][picked]).se
        assert independent < 0.6 * known(clustered)

    def test_is_deterministic_in_its_seed(self) -> None:
        x, y = [9, 5, 4, 7], [4, 2, 2, 3]
        assert bootstrap_ratio_interval(x, y, seed=3) == bootstrap_ratio_interval(x, y, seed=3)
        assert bootstrap_ratio_interval(x, y, seed=3) != bootstrap_ratio_interval(x, y, seed=4)


class TestProportionInterval:
    def test_independent_trials_give_clopper_and_pearson(self) -> None:
        """One trial per cluster: se² = p(1-p)/(G-1), so 30 of 100 become 29.7 of 99."""
        found = proportion_interval([1] * 30 + [0] * 70, [1] * 100)
        assert found.value == pytest.approx(0.3)
        assert found.low == pytest.approx(stats.beta.ppf(0.025, 29.7, 99 - 29.7 + 1))
        assert found.high == pytest.approx(stats.beta.ppf(0.975, 29.7 + 1, 99 - 29.7))

    def test_whole_clusters_count_once(self) -> None:
        """Clusters that are all-or-nothing carry one trial each, however many steps they have."""
        steps = np.full(100, 50)
        found = proportion_interval(steps * (np.arange(100) < 30), steps)
        # n* = 99 shrunk by (t_4999 / t_99)²
        effective = 99 * (stats.t.ppf(0.975, 4999) / stats.t.ppf(0.975, 99)) ** 2
        assert found.low == pytest.approx(stats.beta.ppf(0.025, 0.3 * effective, 0.7 * effective + 1))

    def test_rates_of_zero_and_one_keep_an_honest_width(self) -> None:
        """Nothing accepted in 20 conversations: exactly the bound of 0 of 20, however many steps."""
        zero, one = proportion_interval([0] * 20, [40] * 20), proportion_interval([40] * 20, [40] * 20)
        assert (zero.value, zero.low, zero.high) == (0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
        assert (one.value, one.low, one.high) == (1.0, pytest.approx(0.025 ** (1 / 20)), 1.0)

    def test_stays_inside_zero_and_one_where_the_t_interval_does_not(self) -> None:
        rare = [0] * 18 + [1, 6]
        assert known(ratio_interval(rare, [40] * 20).low) < 0
        found = proportion_interval(rare, [40] * 20)
        assert 0 < known(found.low) < known(found.value) < known(found.high) < 1

    def test_equal_rates_never_give_more_than_the_trials_there_are(self) -> None:
        found = proportion_interval([5] * 10, [10] * 10)
        assert found.high == pytest.approx(stats.beta.ppf(0.975, 51, 50))

    def test_too_few_clusters_give_no_interval(self) -> None:
        assert proportion_interval([3], [4]) == ratio_interval([3], [4])
        assert proportion_interval([0], [0]) == ratio_interval([0], [0])


class TestPairedDifference:
    def test_equal_denominators_without_skew_give_the_paired_t_test(self) -> None:
        rng = np.random.default_rng(2)
        a, change = rng.normal(3, 1, 40), rng.normal(0, 0.5, 20)
        b = a + 0.2 + np.concatenate([change, -change])
        found = paired_ratio_difference(a, np.ones(40), b, np.ones(40))
        expected = stats.ttest_rel(b, a)
        assert found.p_value == pytest.approx(expected.pvalue)
        assert (found.difference.low, found.difference.high) == pytest.approx(tuple(expected.confidence_interval()))

    def test_p_value_and_interval_agree(self) -> None:
        """The bound of a 1 - p interval is the tested value: 0 two-sided, a limit one-sided, from either side."""
        rng = np.random.default_rng(3)
        a, b, y = rng.gamma(2, 1, 30), rng.gamma(3, 1, 30), rng.integers(1, 9, 30)
        found = paired_ratio_difference(a * y, y, b * y, y)
        assert 1e-4 < known(found.p_value) < 0.5
        edge = paired_ratio_difference(a * y, y, b * y, y, confidence=1 - known(found.p_value)).difference
        assert min(abs(known(edge.low)), abs(known(edge.high))) == pytest.approx(0, abs=1e-9)
        assert p_value_below(found.difference, known(found.difference.high)) == pytest.approx(0.025)
        turned = paired_ratio_difference(b * y, y, a * y, y).difference
        assert known(turned.high) == pytest.approx(-known(found.difference.low))
        assert p_value_below(turned, known(turned.high)) == pytest.approx(0.025)

    def test_by_hand(self) -> None:
        """a: 9/4, 5/2 -> R 14/6, e ∓1/18; b: 12/4, 4/2 -> R 16/6, e (12-32/3)/6 = 2/9 and -2/9."""
        found = paired_ratio_difference([9, 5], [4, 2], [12, 4], [4, 2])
        assert found.difference.value == pytest.approx(1 / 3)
        assert found.difference.se == pytest.approx(np.sqrt(2 * 2) * (2 / 9 + 1 / 18))
        assert found.relative_percent.value == pytest.approx(100 * (16 / 14 - 1))
        relative_term = 100 * (2 / 9 + 16 / 14 / 18) / (14 / 6)
        assert found.relative_percent.se == pytest.approx(2 * relative_term)

    def test_agrees_with_the_bootstrap_over_pairs(self, runs: tuple[dict, dict], simulation: SimpleNamespace) -> None:
        """164 pairs, 4,000 replicates: noise 1.1 %; the 10 % band's false alarms are below 1e-6 (as above)."""
        rng = np.random.default_rng(5)
        picked = rng.integers(20_000, size=164)
        (a_x, a_y), (b_x, b_y) = (simulation.terms(run)["tau"] for run in runs)
        found = paired_ratio_difference(a_x[picked], a_y[picked], b_x[picked], b_y[picked])
        again = picked[rng.integers(164, size=(4000, 164))]
        tau_a, tau_b = (x[again].sum(1) / y[again].sum(1) for x, y in ((a_x, a_y), (b_x, b_y)))
        assert found.difference.se == pytest.approx((tau_b - tau_a).std(), rel=0.1)
        assert found.relative_percent.se == pytest.approx((100 * (tau_b / tau_a - 1)).std(), rel=0.1)
        unpaired = np.hypot(tau_a.std(), tau_b.std())
        assert known(found.difference.se) < 0.8 * unpaired  # forgetting the pairing would show

    def test_clusters_missing_in_one_run_are_left_out_of_both(self) -> None:
        found = paired_ratio_difference([9, 5, 4, 0], [4, 2, 2, 0], [12, 4, 0, 3], [4, 2, 0, 1])
        assert found == paired_ratio_difference([9, 5], [4, 2], [12, 4], [4, 2])

    def test_without_spread_p_is_one_for_no_difference_and_undetermined_otherwise(self) -> None:
        assert paired_ratio_difference([9, 5], [4, 2], [9, 5], [4, 2]).p_value == 1.0
        shifted = paired_ratio_difference([4, 2], [4, 2], [8, 4], [4, 2])
        assert (shifted.difference.value, shifted.difference.se, shifted.p_value) == (1.0, 0.0, None)

    def test_a_baseline_of_zero_has_a_difference_but_no_relative_one(self) -> None:
        found = paired_ratio_difference([0, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1])
        assert found.difference.value == pytest.approx(2 / 3)
        assert found.relative_percent.as_dict() == {"value": None, "low": None, "high": None, "se": None}

    def test_bounds_stay_within_what_can_be(self) -> None:
        """Two clusters that disagree: shares differ by at most 1, and none can fall by more than 100 %."""
        found = paired_ratio_difference([9, 1], [10, 10], [1, 8], [10, 10], most=1)
        assert (found.difference.low, found.difference.high) == (-1, 1)
        assert found.relative_percent.low == -100 and known(found.relative_percent.high) > 100

    def test_one_common_cluster_has_values_only(self) -> None:
        found = paired_ratio_difference([9], [4], [12], [4])
        assert (found.difference.value, found.difference.low, found.p_value) == (0.75, None, None)
        none = paired_ratio_difference([0], [0], [1], [1])
        assert (none.difference.value, none.relative_percent.value, none.p_value) == (None, None, None)

    def test_bad_input_is_refused(self) -> None:
        with pytest.raises(ValueError, match="one shape"):
            paired_ratio_difference([1, 2], [1, 1], [1], [1])
        with pytest.raises(ValueError, match="negative"):
            paired_ratio_difference([1, 2], [1, 1], [1, 2], [1, -1])


def test_warnings_name_what_few_conversations_cost() -> None:
    assert "nothing" in cluster_warnings(0)[0]
    assert "at least two" in cluster_warnings(1)[0]
    assert f"only {LEAST_EFFECTIVE - 1}" in cluster_warnings(LEAST_EFFECTIVE - 1)[0]
    assert cluster_warnings(LEAST_EFFECTIVE) == []


def test_warnings_name_conversations_that_count_for_more_than_the_others() -> None:
    """80 conversations of which four accept 95 times as much as the rest count as about 6."""
    effective = float(effective_clusters([95] * 4 + [1] * 76))
    assert effective == pytest.approx((4 * 95 + 76) ** 2 / (4 * 95**2 + 76))
    assert "80 conversations that count as 6" in cluster_warnings(80, effective)[0]
    assert "count as" not in cluster_warnings(2, 1.9)[0]
    assert effective_clusters([3] * 80) == 80 == effective_clusters([0] * 80)
    assert cluster_warnings(80, 80.0, share=0.3) == []
    assert "one conversation holds 60 % of the variance" in cluster_warnings(80, 80.0, share=0.6)[0]


class TestHolm:
    def test_equals_the_worked_example_and_keeps_the_order(self) -> None:
        """Four tests at 0.01, 0.04, 0.03, 0.005: the two smallest survive at 5 %."""
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.9, 0.8]) == [1.0, 1.0]

    def test_undetermined_values_are_no_tests(self) -> None:
        assert holm([None, 0.02, None, 0.04]) == [None, 0.04, None, 0.04]
        assert holm([]) == []


class TestVarianceComponents:
    def test_known_components_are_found(self) -> None:
        """2,000 simulated runs of 40 clusters with spread 0.5 between them and 0.8 between samples, unequal numbers of
        samples and unequal denominators: the mean estimate of each part of the variance is within 3 % of what is put in
        (its own noise is 0.5 to 0.7 %; a missing n/(n-1), n or G shows as 20 % or more)."""
        rng = np.random.default_rng(6)
        counts = rng.integers(2, 8, 40)
        owner = np.repeat(np.arange(40), counts)
        y = rng.choice([0.9, 1.0, 1.1], len(owner))
        found = []
        for _ in range(2000):
            rate = 2.4 + rng.normal(0, 0.5, 40)[owner] + rng.normal(0, 0.8, len(owner))
            components = variance_components(rate * y, y, owner)
            assert components is not None
            found.append((components.se_samples**2, components.se**2))
        w = y / y.sum()
        samples = 0.8**2 * (w**2).sum()
        clusters = 0.5**2 * (np.bincount(owner, w) ** 2).sum()
        assert np.mean(found, axis=0) == pytest.approx([samples, samples + clusters], rel=0.03)

    def test_by_hand(self) -> None:
        """Rates 1, 3 and 4, 8, each with denominator 1: R = 4, e = -3/4, -1/4 and 0, 1; cluster sums -1 and 1."""
        found = variance_components([1, 3, 4, 8], [1, 1, 1, 1], [0, 0, 1, 1])
        assert found is not None
        within = 2 * (2 * 0.25**2) + 2 * (2 * 0.5**2)
        assert (
            found.se**2 == pytest.approx(2 * (1 + 1)) == pytest.approx(known(ratio_interval([4, 12], [2, 2]).se) ** 2)
        )
        assert found.se_samples**2 == pytest.approx(within)
        assert found.cluster_share == pytest.approx((4 - within) / 4)
        assert found.se**2 == pytest.approx(found.sd_clusters**2 / 2 + found.sd_samples**2 / 4)
        assert found.df_samples == 2

    def test_equal_samples_leave_all_to_the_clusters_and_noise_alone_leaves_nothing(self) -> None:
        equal = variance_components([1, 1, 4, 4], [1, 1, 1, 1], ["a", "a", "b", "b"])
        assert equal is not None
        assert (equal.se_samples, equal.cluster_share) == (0, 1)
        noise = variance_components([1, 4, 4, 1.5], [1, 1, 1, 1], ["a", "a", "b", "b"])
        assert noise is not None
        assert (noise.sd_clusters, noise.cluster_share) == (0, 0)

    def test_undetermined_is_none(self) -> None:
        assert variance_components([1, 2], [1, 1], [0, 1]) is None
        assert variance_components([1, 2], [1, 1], [0, 0]) is None
        assert variance_components([2, 2, 2, 2], [1, 1, 1, 1], [0, 0, 1, 1]) is None
        assert variance_components([], [], []) is None


class TestDetectable:
    def test_effects_of_that_size_are_found_in_four_of_five_experiments(self) -> None:
        """20,000 experiments: noise 0.3 points; 3 points are ten times that. The two quantiles added are an
        approximation to the noncentral t, good to a point from 10 clusters on."""
        rng = np.random.default_rng(4)
        for clusters in (12, 60):
            noise = rng.normal(0, 1, (20_000, clusters))
            size = stats.t.ppf([0.975, 0.8], clusters - 1).sum() / np.sqrt(clusters)
            found = np.abs((noise + size).mean(1) / stats.sem(noise, axis=1)) > stats.t.ppf(0.975, clusters - 1)
            assert found.mean() == pytest.approx(0.8, abs=0.03)

    def test_by_hand(self) -> None:
        estimate = ratio_interval([9, 5, 4], [4, 2, 2])
        size = detectable(estimate, level=0.05, power=0.8)
        assert size == pytest.approx(stats.t.ppf([0.975, 0.8], estimate.df).sum() * known(estimate.se))
        assert detectable(ratio_interval([9], [4])) is None

    def test_without_spread_no_difference_is_promised_to_be_seen(self) -> None:
        """Four conversations that all show +33 % do not mean that any smaller difference would have been seen."""
        assert detectable(paired_ratio_difference([3] * 4, [1] * 4, [4] * 4, [1] * 4).relative_percent) is None


class TestCoverage:
    """95 % intervals hold the truth about 95 % of the time: heterogeneous prompts, correlated steps, unequal lengths.

    `expected` is the coverage that scripts/coverage.py measured with 20,000 draws. Each test first asserts that, were
    that the true coverage, the binomial noise of its own draws would leave the band with probability below 1e-6.
    """

    @pytest.mark.parametrize(
        ("clusters", "draws", "expected", "low", "high"),
        [
            (20, 12_000, 0.950, 0.93, 0.97),
            (80, 12_000, 0.950, 0.93, 0.97),
            (164, 12_000, 0.950, 0.93, 0.97),
            (1319, 4_000, 0.952, 0.93, 0.97),
        ],
    )
    @pytest.mark.parametrize("estimator", ["tau", "tau_paper", "tau_committed", "tau_request_mean"])
    def test_of_acceptance_lengths(
        self,
        simulation: SimpleNamespace,
        runs: tuple[dict, dict],
        estimator: str,
        clusters: int,
        draws: int,
        expected: float,
        low: float,
        high: float,
    ) -> None:
        assert false_alarm(draws, expected, low, high) < 1e-6
        x, y = simulation.terms(runs[0])[estimator]
        methods = {found["method"]: found for found in simulation.coverage(x, y, clusters, draws, seed=7)}
        assert low <= methods["skew"]["coverage"] <= high

    @pytest.mark.parametrize("name", ["long-tailed lengths", "poor drafter"])
    def test_of_tau_where_few_conversations_weigh_most_or_the_rates_are_skewed(
        self, simulation: SimpleNamespace, name: str
    ) -> None:
        """20 conversations cover 94 to 95 %; a t interval with G - 1 degrees of freedom 89 to 90 %."""
        assert false_alarm(12_000, 0.942, 0.93, 0.97) < 1e-6
        hard, _ = simulation.population(simulation.SCENARIOS[name], 20_000, seed=1)
        found = simulation.coverage(*simulation.terms(hard)["tau"], 20, 12_000, seed=12)
        methods = {row["method"]: row["coverage"] for row in found}
        assert 0.93 <= methods["skew"] <= 0.97
        assert methods["student"] < 0.92

    @pytest.mark.parametrize("estimator", ["unconditional_1", "unconditional_5", "conditional_1", "conditional_5"])
    def test_of_position_rates(self, simulation: SimpleNamespace, runs: tuple[dict, dict], estimator: str) -> None:
        assert false_alarm(8_000, 0.950, 0.93, 0.97) < 1e-6
        x, y = simulation.terms(runs[0])[estimator]
        methods = {found["method"]: found for found in simulation.coverage(x, y, 164, 8_000, seed=8)}
        assert 0.93 <= methods["effective"]["coverage"] <= 0.97

    def test_of_rates_near_zero_where_a_t_interval_fails(self, simulation: SimpleNamespace) -> None:
        """A poor drafter's last position at 20 conversations: the t interval covers 62 %, the one in use 99 %."""
        poor, _ = simulation.population(simulation.SCENARIOS["poor drafter"], 20_000, seed=1)
        x, y = simulation.terms(poor)["unconditional_5"]
        methods = {found["method"]: found["coverage"] for found in simulation.coverage(x, y, 20, 4_000, seed=9)}
        assert methods["effective"] > 0.93
        assert methods["student"] < 0.8

    def test_of_paired_differences(self, simulation: SimpleNamespace, runs: tuple[dict, dict]) -> None:
        assert false_alarm(8_000, 0.948, 0.93, 0.97) < 1e-6
        for found in simulation.paired_coverage(*runs, clusters=80, replications=8_000, seed=10):
            assert 0.93 <= found["coverage"] <= 0.97, found["estimator"]

    def test_steps_taken_as_independent_would_fail(self, runs: tuple[dict, dict]) -> None:
        """The power of the tests above against the commonest mistake: it covers less than 75 %."""
        accepted, steps = runs[0]["accepted_1"], runs[0]["steps"]
        picked = np.random.default_rng(11).integers(len(steps), size=(12_000, 164))
        n, truth = steps[picked].sum(1), accepted.sum() / steps.sum()
        rate = accepted[picked].sum(1) / n
        assert (np.abs(rate - truth) < 1.96 * np.sqrt(rate * (1 - rate) / n)).mean() < 0.75


def false_alarm(draws: int, coverage: float, low: float, high: float) -> float:
    """Probability that `draws` intervals of this true coverage show a share outside [low, high]."""
    counts = stats.binom(draws, coverage)
    return float(counts.cdf(np.ceil(low * draws) - 1) + counts.sf(np.floor(high * draws)))
