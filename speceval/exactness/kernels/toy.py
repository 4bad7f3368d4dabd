"""The toy that the kernels are tried on: a target and a drafter that are Markov chains, so every law is exact.

Target and drafter are random tables of logits over a small vocabulary, indexed by the previous token. Requests
start after token 0 and run round by round through a version's own drafting and verification until each has
`TOKENS` tokens. Requests are shuffled among rows and slots in every round, their number of verified drafts
varies, and one in eight is greedy: its tokens must be the target's argmax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 6
K = 3
TOKENS = 5
TEMPERATURE = 0.8
GREEDY_SHARE = 8
"""One request in so many is greedy."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Toy:
    """Logits of target and drafter before temperature, [vocabulary, vocabulary], row = previous token."""

    target_logits: NDArray[np.float32]
    draft_logits: NDArray[np.float32]
    temperature: float

    @property
    def p(self) -> Floats:
        """The target's distribution after each token."""
        return softmax(self.target_logits / self.temperature)

    @property
    def q(self) -> Floats:
        """The drafter's distribution after each token."""
        return softmax(self.draft_logits / self.temperature)


def make_toy(seed: int = 0) -> Toy:
    """The same tables for the same seed; their Σ min(p, q) lies near 0.6."""
    rng = np.random.default_rng(seed)
    shape = (VOCABULARY, VOCABULARY)
    target, draft = rng.normal(size=shape), rng.normal(size=shape)
    return Toy(target.astype(np.float32), draft.astype(np.float32), TEMPERATURE)


def softmax(logits: NDArray[Any]) -> Floats:
    """Over the last axis, in double precision."""
    e = np.exp(np.asarray(logits, np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Round:
    """What the drafter and the verifier of one round are given; one row per request, m rows."""

    rows: Ints
    """Request of each row [m]."""
    slots: Ints
    """Where the engine keeps each request's state [m]."""
    last: Ints
    """Last token of each request [m]."""
    position: Ints
    """Its position in the sequence [m]."""
    drafted: Ints
    """Drafts to verify, 1 ... K [m]."""
    temperature: NDArray[np.float32]
    """0 for greedy requests [m]."""


class Driver(Protocol):
    """A version's drafting and verification behind one face."""

    def start(self, seeds: Ints, temperature: NDArray[np.float32]) -> None:
        """New requests: seeds and temperatures by slot."""

    def draft(self, batch: Round, previous: Ints, step: int) -> Ints:
        """Draft token number `step` (from 0) of each row [m], after the tokens `previous` [m]."""

    def verify(self, batch: Round, drafts: Ints) -> Ints:
        """Tokens that each row emits [m, K + 1], -1 where there is none. `drafts` [m, K], -1 for padding."""


@dataclass
class Sample:
    """What came out."""

    tokens: Ints
    """[requests, TOKENS]."""
    greedy: NDArray[np.bool_]
    consecutive: NDArray[np.bool_]
    """Requests whose seeds are consecutive integers; the others' are random."""
    reached: Ints = field(default_factory=lambda: np.zeros(K, np.int64))
    """Sampled requests' draft positions that were reached (all before them accepted), by position."""
    accepted: Ints = field(default_factory=lambda: np.zeros(K, np.int64))
    expected: Floats = field(default_factory=lambda: np.zeros(K))
    """Σ of the acceptance probability over the reached positions."""
    variance: Floats = field(default_factory=lambda: np.zeros(K))

    def join(self, other: Sample) -> Sample:
        """Both samples as one."""
        stacked = [np.concatenate([a, b]) for a, b in zip(self.arrays[:3], other.arrays[:3], strict=True)]
        summed = [a + b for a, b in zip(self.arrays[3:], other.arrays[3:], strict=True)]
        return Sample(*stacked, *summed)

    @property
    def arrays(self) -> list[Any]:
        """All fields in order."""
        return [
            self.tokens,
            self.greedy,
            self.consecutive,
            self.reached,
            self.accepted,
            self.expected,
            self.variance,
        ]


def acceptance_probability(toy: Toy, drafting: str) -> Callable[[Ints, Ints], Floats]:
    """P(accept | reached) after a token, for a draft (-1: none): Σ min(p, q), or p(draft) where q is one-hot."""
    p, overlap = toy.p, np.minimum(toy.p, toy.q).sum(-1)
    if drafting == "probabilistic":
        return lambda previous, draft: np.where(draft < 0, 0.0, overlap[previous])
    return lambda previous, draft: np.where(draft < 0, 0.0, p[previous, np.maximum(draft, 0)])


def sample(driver: Driver, toy: Toy, drafting: str, requests: int, seed: int, pad: bool = False) -> Sample:
    """Run `requests` requests to `TOKENS` tokens. With `pad`, some rows' last drafts are placeholders (-1)."""
    rng = np.random.default_rng(seed)
    greedy = np.arange(requests) % GREEDY_SHARE == 0
    consecutive = np.arange(requests) >= requests // 2
    seeds = np.where(consecutive, seed * requests + np.arange(requests), rng.integers(0, 2**62, requests))
    temperature = np.where(greedy, 0.0, toy.temperature).astype(np.float32)
    slot = rng.permutation(requests)
    by_slot = np.argsort(slot)
    driver.start(seeds[by_slot], temperature[by_slot])
    result = Sample(np.full((requests, TOKENS), -1), greedy, consecutive)
    have, last = np.zeros(requests, np.int64), np.zeros(requests, np.int64)
    start = rng.integers(1, 1000, requests)
    chance = acceptance_probability(toy, drafting)
    while (rows := np.flatnonzero(have < TOKENS)).size:
        rows = rng.permutation(rows)
        drafted = np.where(rng.random(rows.size) < 0.5, K, rng.integers(1, K + 1, rows.size))
        batch = Round(rows, slot[rows], last[rows], start[rows] + have[rows], drafted, temperature[rows])
        drafts = np.empty((rows.size, K), np.int64)
        for step in range(K):
            drafts[:, step] = driver.draft(batch, drafts[:, step - 1] if step else batch.last, step)
        if pad:
            cut = np.where(rng.random(rows.size) < 0.4, rng.integers(0, K, rows.size), K)
            drafts[np.arange(K) >= cut[:, None]] = -1
        emitted = driver.verify(batch, drafts)
        _count(result, batch, drafts, emitted, chance)
        _append(result.tokens, rows, have, last, emitted)
    return result


def _count(result: Sample, batch: Round, drafts: Ints, emitted: Ints, chance: Callable[[Ints, Ints], Floats]) -> None:
    accepted = (emitted >= 0).sum(1) - 1
    for step in range(K):
        here = (batch.drafted > step) & (accepted >= step) & (batch.temperature > 0)
        previous = (drafts[:, step - 1] if step else batch.last)[here]
        alpha = chance(np.maximum(previous, 0), drafts[here, step])
        result.reached[step] += here.sum()
        result.accepted[step] += (accepted[here] > step).sum()
        result.expected[step] += alpha.sum()
        result.variance[step] += (alpha * (1 - alpha)).sum()


def _append(tokens: Ints, rows: Ints, have: Ints, last: Ints, emitted: Ints) -> None:
    """Keep each row's emitted tokens, in order; what lies beyond `TOKENS` is dropped."""
    for column in range(emitted.shape[1]):
        kept = (emitted[:, column] >= 0) & (have[rows] < TOKENS)
        mine = rows[kept]
        tokens[mine, have[mine]] = emitted[kept, column]
        have[mine] += 1
        last[mine] = emitted[kept, column]
