"""Is the sample drawn from the target's law? Exact expectations, and one verdict with a stated false-alarm rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from speceval.kernels.toy import TOKENS, VOCABULARY, Ints, Sample, Toy

WINDOW = 3
"""Tokens whose joint law is tested."""
LEAST_EXPECTED = 20
"""Cells of a chi-square test are pooled until each expects so many."""
FALSE_ALARM = 1e-6
"""Chance that any cell of a matrix of `FAMILY` correct ones is called biased."""
FAMILY = 200
ALARM = FALSE_ALARM / FAMILY
"""A cell is biased if its p-value, already corrected for the tests within the cell, is below this."""
SEEN = 0.02
"""A cell is called exact only if a single-token bias of this total variation would have been seen (power 99 %)."""
EXACT, BIASED, TOO_FEW = "exact", "biased", "not enough samples"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """What one cell of the matrix says."""

    tv: float
    """Total variation between a token's sampled and exact law, at the token where it stands out most."""
    noise: float
    """What that distance is expected to be for exact sampling."""
    tv_joint: float
    """The same for three consecutive tokens."""
    noise_joint: float
    p: float
    """Of exact sampling: the smallest p-value of all tests of the cell, times their number."""
    acceptance: float
    """Accepted over reached draft positions, all positions together."""
    expected: float
    """The same as the law has it: mean of Σ min(p, q), or of p(draft) where q is one-hot."""
    z: float
    """The difference's z-score at the draft position where it is largest."""
    smallest_bias: float
    """Total variation of one token that would have been called biased with power 99 %."""
    verdict: str


def judge(sample: Sample, toy: Toy, acceptance_known: bool = True) -> Judgement:
    """Chi-square tests of every token and every `WINDOW` tokens, over all sampled requests and over those with
    consecutive seeds; z-tests of the acceptance by position (unless `acceptance_known` is false: block verification
    accepts more than Σ min(p, q)); greedy requests must equal the target's argmax chain. Bonferroni over the tests.
    """
    chosen = sample.tokens[~sample.greedy]
    seeded = sample.tokens[~sample.greedy & sample.consecutive]
    windows = [(first, 1) for first in range(TOKENS)] + [(f, WINDOW) for f in range(TOKENS - WINDOW + 1)]
    laws = {window: exact_law(toy, *window) for window in windows}
    ps = [chi_square(counts(rows, *window), law) for rows in (chosen, seeded) for window, law in laws.items()]
    reached = sample.reached > 0
    z = np.zeros(len(sample.reached))
    if acceptance_known:
        difference = (sample.accepted - sample.expected)[reached]
        z[reached] = difference / np.sqrt(np.maximum(sample.variance[reached], 1e-9))
        ps += list(2 * stats.norm.sf(np.abs(z[reached])))
    if (sample.tokens[sample.greedy] != greedy_chain(toy)).any():
        ps.append(0.0)
    p = min(1.0, float(np.min(ps)) * len(ps))
    tv, noise = largest([tv_and_noise(counts(chosen, *w), laws[w]) for w in windows if w[1] == 1])
    tv_joint, noise_joint = largest([tv_and_noise(counts(chosen, *w), laws[w]) for w in windows if w[1] == WINDOW])
    bias = smallest_bias(len(chosen), len(ps))
    verdict = BIASED if p < ALARM else EXACT if bias <= SEEN else TOO_FEW
    return Judgement(
        tv=tv,
        noise=noise,
        tv_joint=tv_joint,
        noise_joint=noise_joint,
        p=p,
        acceptance=float(sample.accepted.sum() / sample.reached.sum()),
        expected=float(sample.expected.sum() / sample.reached.sum()) if acceptance_known else float("nan"),
        z=float(z[np.abs(z).argmax()]) if acceptance_known else float("nan"),
        smallest_bias=bias,
        verdict=verdict,
    )


def exact_law(toy: Toy, first: int, length: int) -> Floats:
    """Joint law of tokens first ... first + length - 1 after token 0, flattened, [VOCABULARY ** length]."""
    law = np.linalg.matrix_power(toy.p, first + 1)[0]
    for _ in range(length - 1):
        law = (law.reshape(-1, VOCABULARY)[..., None] * toy.p).ravel()
    return law


def greedy_chain(toy: Toy) -> Ints:
    """The target's argmax tokens after token 0, [TOKENS]."""
    chain = [0]
    for _ in range(TOKENS):
        chain.append(int(toy.target_logits[chain[-1]].argmax()))
    return np.array(chain[1:])


def counts(tokens: Ints, first: int, length: int) -> Ints:
    """How often each window of tokens came, in the order of `exact_law`."""
    index = np.zeros(len(tokens), np.int64)
    for column in range(first, first + length):
        index = index * VOCABULARY + tokens[:, column]
    return np.bincount(index, minlength=VOCABULARY**length)


def chi_square(observed: Ints, law: Floats) -> float:
    """p-value of Pearson's test; the rarest cells are pooled."""
    expected = law * observed.sum()
    order = np.argsort(expected)
    pooled = np.searchsorted(np.cumsum(expected[order]), LEAST_EXPECTED) + 1 if expected.min() < LEAST_EXPECTED else 1
    heads, tails = order[:pooled], order[pooled:]
    while tails.size and expected[tails[0]] < LEAST_EXPECTED:
        heads, tails = np.append(heads, tails[0]), tails[1:]
    e = np.append(expected[tails], expected[heads].sum())
    o = np.append(observed[tails], observed[heads].sum())
    return float(stats.chi2.sf(((o - e) ** 2 / e).sum(), len(e) - 1)) if len(e) > 1 else 1.0


def tv_and_noise(observed: Ints, law: Floats) -> tuple[float, float]:
    """Total variation, and its expectation for exact sampling: ½ Σ √(2 p (1 - p) / (π n))."""
    n = observed.sum()
    return (
        float(np.abs(observed / n - law).sum() / 2),
        float(np.sqrt(2 * law * (1 - law) / (np.pi * n)).sum() / 2),
    )


def largest(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The (distance, noise) whose distance is the largest in units of its noise."""
    return max(pairs, key=lambda pair: pair[0] / pair[1])


def smallest_bias(requests: int, tests: int) -> float:
    """Total variation t of one token that is seen with power 99 %: the test's non-centrality is at least 4 n t²."""
    df = VOCABULARY - 1
    threshold = stats.chi2.isf(ALARM / tests, df)
    low, high = 0.0, 10 * threshold
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if stats.ncx2.sf(threshold, df, middle) < 0.99 else (low, middle)
    return float(np.sqrt(high / (4 * requests)))
