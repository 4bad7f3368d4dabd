"""The statistics of the kernel verifier: right samplers pass, small biases are seen, laws are exact."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from speceval.exactness import law
from speceval.exactness.kernels import judge, toy
from speceval.exactness.law import Verdict


def perfect(requests: int, seed: int, table: np.ndarray | None = None) -> toy.Sample:
    """A sample of the target itself (or of another table of probabilities), with the acceptance of exact sampling."""
    rng, chain = np.random.default_rng(seed), toy.make_toy()
    p = chain.p if table is None else table
    last, tokens = np.zeros(requests, np.int64), np.empty((requests, toy.TOKENS), np.int64)
    for column in range(toy.TOKENS):
        last = np.minimum((rng.random((requests, 1)) > p[last].cumsum(1)).sum(1), toy.VOCABULARY - 1)
        tokens[:, column] = last
    greedy = np.arange(requests) % toy.GREEDY_SHARE == 0
    tokens[greedy] = judge.greedy_chain(chain)
    reached = np.full(toy.K, requests)
    accepted = rng.binomial(requests, 0.5, toy.K)
    return toy.Sample(tokens, greedy, np.arange(requests) % 2 == 0, reached, accepted, reached * 0.5, reached * 0.25)


def test_exact_law_is_what_enumeration_gives() -> None:
    p = toy.make_toy().p
    found = judge.exact_law(toy.make_toy(), 1, 2)
    first = p[0]
    by_hand = [[sum(first[a] * p[a, b] for a in range(6)) * p[b, c] for c in range(6)] for b in range(6)]
    assert np.allclose(found, by_hand, atol=1e-12)
    assert found.sum() == pytest.approx(1)


def test_a_perfect_sampler_is_exact() -> None:
    for seed in range(6):  # false alarm: 6 x 5e-9
        found = judge.judge(perfect(75_000, seed), toy.make_toy())
        assert found.verdict == Verdict.exact, found


def test_p_values_of_a_perfect_sampler_are_uniform() -> None:
    cells = 75_000 * judge.exact_law(toy.make_toy(), 0, 3).ravel()
    rng = np.random.default_rng(0)
    draws = rng.multinomial(75_000, cells / 75_000, 400).astype(float)
    ps = [law.pearson(*law.merge(cells, row, judge.LEAST_EXPECTED), judge.ALARM).p for row in draws]
    assert stats.kstest(ps, "uniform").pvalue > 1e-6


def test_a_bias_of_two_percent_is_seen() -> None:
    table = toy.make_toy().p.copy()
    table[0, 0] += 0.02
    table[0, 3] -= 0.02
    found = judge.judge(perfect(75_000, 0, table), toy.make_toy())
    assert found.verdict == Verdict.biased
    assert found.smallest_bias < 0.02


def test_few_samples_are_never_called_exact() -> None:
    assert judge.judge(perfect(5_000, 0), toy.make_toy()).verdict == Verdict.unsettled


def test_one_wrong_greedy_token_is_seen() -> None:
    sample = perfect(75_000, 0)
    sample.tokens[np.flatnonzero(sample.greedy)[7], 2] += 1
    assert judge.judge(sample, toy.make_toy()).verdict == Verdict.biased


def test_wrong_acceptance_is_seen_when_tokens_are_right() -> None:
    sample = perfect(75_000, 0)
    sample.accepted[1] += 1500  # two percent of those reached
    found = judge.judge(sample, toy.make_toy())
    assert found.verdict == Verdict.biased
    assert judge.judge(sample, toy.make_toy(), acceptance_known=False).verdict == Verdict.exact
