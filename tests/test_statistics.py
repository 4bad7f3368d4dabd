"""Clustered intervals: by hand, against textbook special cases, against the bootstrap, and by their coverage."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from speceval.statistics import (
    TRUSTED_CLUSTERS,
    bootstrap_ratio_interval,
    cluster_warnings,
    paired_ratio_difference,
    proportion_interval,
    ratio_and_error,
    ratio_interval,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def simulation() -> SimpleNamespace:
    """The functions of scripts/coverage.py, which makes the table in docs/statistics.md."""
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
        assert (found.clusters, found.df) == (3, 2)
        assert found.high == pytest.approx(2.25 + 4.302652730 * np.sqrt(3) / 16)
        assert found.low == pytest.approx(2.25 - 4.302652730 * np.sqrt(3) / 16)

    def test_equal_denominators_give_the_one_sample_t_interval(self) -> None:
        x = np.random.default_rng(0).normal(3, 1, 25)
        found = ratio_interval(x, np.ones(25), confidence=0.9)
        expected = stats.ttest_1samp(x, 0).confidence_interval(0.9)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert found.se == pytest.approx(stats.sem(x))

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
        for i, (value, se, clusters) in enumerate(zip(*ratio_and_error(x, y), strict=True)):
            one = ratio_interval(x[i], y[i])
            assert (one.value, one.se, one.clusters) == pytest.approx((value, se, clusters))

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

    def test_one_cluster_has_no_interval(self) -> None:
        assert bootstrap_ratio_interval([9], [4]) == ratio_interval([9], [4])


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
    def test_equal_denominators_give_the_paired_t_test(self) -> None:
        rng = np.random.default_rng(2)
        a = rng.normal(3, 1, 40)
        b = a + rng.normal(0.2, 0.5, 40)
        found = paired_ratio_difference(a, np.ones(40), b, np.ones(40))
        expected = stats.ttest_rel(b, a)
        assert found.p_value == pytest.approx(expected.pvalue)
        assert (found.difference.low, found.difference.high) == pytest.approx(tuple(expected.confidence_interval()))

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

    def test_one_common_cluster_has_values_only(self) -> None:
        found = paired_ratio_difference([9], [4], [12], [4])
        assert (found.difference.value, found.difference.low, found.p_value) == (0.75, None, None)
        none = paired_ratio_difference([0], [0], [1], [1])
        assert (none.difference.value, none.relative_percent.value, none.p_value) == (None, None, None)

    def test_bad_input_is_refused(self) -> None:
        with pytest.raises(ValueError, match="above zero"):
            paired_ratio_difference([0, 0], [1, 1], [1, 1], [1, 1])
        with pytest.raises(ValueError, match="one shape"):
            paired_ratio_difference([1, 2], [1, 1], [1], [1])
        with pytest.raises(ValueError, match="negative"):
            paired_ratio_difference([1, 2], [1, 1], [1, 2], [1, -1])


def test_warnings_name_what_few_conversations_cost() -> None:
    assert "nothing" in cluster_warnings(0)[0]
    assert "at least two" in cluster_warnings(1)[0]
    assert "only 79" in cluster_warnings(TRUSTED_CLUSTERS - 1)[0]
    assert cluster_warnings(TRUSTED_CLUSTERS) == []


class TestCoverage:
    """95 % intervals hold the truth about 95 % of the time: heterogeneous prompts, correlated steps, unequal lengths.

    `expected` is the coverage that scripts/coverage.py measured with 20,000 draws (20 conversations are known to cover
    a little less). Each test first asserts that, were that the true coverage, the binomial noise of its own draws
    would leave the band with probability below 1e-6.
    """

    @pytest.mark.parametrize(
        ("clusters", "draws", "expected", "low", "high"),
        [
            (20, 12_000, 0.933, 0.92, 0.97),
            (80, 12_000, 0.944, 0.93, 0.97),
            (164, 12_000, 0.947, 0.93, 0.97),
            (1319, 4_000, 0.949, 0.93, 0.97),
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
        (found,) = simulation.coverage(x, y, clusters, draws, seed=7)
        assert low <= found["coverage"] <= high

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
