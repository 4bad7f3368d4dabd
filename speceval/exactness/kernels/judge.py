"""Is the sample drawn from the target's law? Exact expectations, and one verdict with a stated false-alarm rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from speceval.exactness import law
from speceval.exactness.kernels.toy import TOKENS, VOCABULARY, Floats, Ints, Sample, Toy
from speceval.exactness.law import Verdict

WINDOW = 3
"""Tokens whose joint law is tested."""
LEAST_EXPECTED = 20
"""Cells of a chi-square test are pooled until each expects so many."""
FALSE_ALARM = 1e-6
"""Chance that any cell of a matrix of `FAMILY` correct ones is called biased."""
FAMILY = 200
ALARM = FALSE_ALARM / FAMILY
"""A cell is biased if its p-value, already corrected for the tests within the cell, is below this."""
SEEN, POWER = 0.02, 0.99
"""A cell is called exact only if a single-token bias of this total variation would have been seen with this power."""


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
    verdict: Verdict


def judge(sample: Sample, toy: Toy, acceptance_known: bool = True) -> Judgement:
    """Chi-square tests of every token and every `WINDOW` tokens, over all sampled requests and over those with
    consecutive seeds; z-tests of the acceptance by position (unless `acceptance_known` is false: block verification
    accepts more than Σ min(p, q)); greedy requests must equal the target's argmax chain. Bonferroni over the tests.
    """
    chosen, seeded = sample.tokens[~sample.greedy], sample.tokens[~sample.greedy & sample.consecutive]
    windows = [(first, length) for length in (1, WINDOW) for first in range(TOKENS - length + 1)]
    fits, of_seeded = ([fit(toy, tokens, *window) for window in windows] for tokens in (chosen, seeded))
    ps = [found.p for found in fits + of_seeded]
    reached = sample.reached > 0
    z = np.zeros(len(sample.reached))
    if acceptance_known:
        difference = (sample.accepted - sample.expected)[reached]
        z[reached] = difference / np.sqrt(np.maximum(sample.variance[reached], 1e-9))
        ps += list(2 * stats.norm.sf(np.abs(z[reached])))
    if (sample.tokens[sample.greedy] != greedy_chain(toy)).any():
        ps.append(0.0)
    p = min(1.0, float(np.min(ps)) * len(ps))
    single, joint = (max(part, key=lambda found: found.tv / found.noise) for part in (fits[:TOKENS], fits[TOKENS:]))
    bias = law.detectable(VOCABULARY - 1, len(chosen), ALARM / len(ps), POWER)
    verdict = Verdict.biased if p < ALARM else Verdict.exact if bias <= SEEN else Verdict.unsettled
    return Judgement(
        tv=single.tv,
        noise=single.noise,
        tv_joint=joint.tv,
        noise_joint=joint.noise,
        p=p,
        acceptance=float(sample.accepted.sum() / sample.reached.sum()),
        expected=float(sample.expected.sum() / sample.reached.sum()) if acceptance_known else float("nan"),
        z=float(z[np.abs(z).argmax()]) if acceptance_known else float("nan"),
        smallest_bias=bias,
        verdict=verdict,
    )


def fit(toy: Toy, tokens: Ints, first: int, length: int) -> law.Fit:
    """Chi-square test of tokens first ... first + length - 1 of each request [n, TOKENS]."""
    return law.fit(exact_law(toy, first, length), tokens[:, first : first + length], ALARM, LEAST_EXPECTED)


def exact_law(toy: Toy, first: int, length: int) -> Floats:
    """Joint law of tokens first ... first + length - 1 after token 0, [VOCABULARY] * length."""
    joint = np.linalg.matrix_power(toy.p, first + 1)[0]
    for _ in range(length - 1):
        joint = joint[..., None] * toy.p
    return joint


def greedy_chain(toy: Toy) -> Ints:
    """The target's argmax tokens after token 0, [TOKENS]."""
    chain = [0]
    for _ in range(TOKENS):
        chain.append(int(toy.target_logits[chain[-1]].argmax()))
    return np.array(chain[1:])
