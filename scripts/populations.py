"""Simulated populations of conversations whose true acceptance is known: coverage.py and gate_power.py draw from them.

A conversation has one to three requests (turns). Its logit acceptance per draft token is normal over conversations; the
steps of a request vary around it with memory (AR(1)), and the lengths of the answers may depend on it. A step drafts K
tokens and accepts them one by one. Every seed decodes the same conversation anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import bisect
from scipy.special import expit

K = 5
MAX_TOKENS = 256
Floats = NDArray[np.float64]
Counts = NDArray[np.int32]
"""Shape (conversations, seeds, 2 + 2 K): steps, accepted, #(A >= j) and #(A >= j-1) for j = 1 … K."""


@dataclass(frozen=True)
class Population:
    """How conversations differ."""

    mean: float
    """Of the conversations' logit acceptance per draft token."""
    spread: float
    tokens: float = 60
    """Median length of an answer."""
    length_sigma: float = 0.6
    easier: float = 0.0
    """How much log length rises with the logit acceptance's deviation, in units of its spread."""
    looping: float = 0.0
    """Share of prompts whose answers repeat themselves up to MAX_TOKENS, nearly all drafts accepted."""


POPULATIONS = {
    "chat": Population(0.95, 0.6),
    "long answers easier": Population(0.7, 0.6, tokens=70, length_sigma=0.9, easier=0.5),
    "loops": Population(0.3, 0.6, looping=0.05),
    "tau 1.1": Population(-3.1, 1.3),
}
"""chat: tau 2.9; loops: a twentieth of the prompts; tau 1.1: most drafts fail everywhere, as of an n-gram on chat."""


@dataclass(frozen=True)
class Prompts:
    """One population's conversations, to be decoded by any drafter."""

    logit: Floats
    loops: NDArray[np.bool_]
    worth: Floats
    """Uniform on (0, 1) for each: which conversations an uneven effect falls on."""
    owner: NDArray[np.int64]
    """Conversation of each request."""
    length: NDArray[np.int64]


def prompts(kind: Population, conversations: int, seed: int) -> Prompts:
    """Draw the conversations."""
    rng = np.random.default_rng(seed)
    deviation = rng.normal(size=conversations)
    turns = rng.integers(1, 4, conversations)
    owner = np.repeat(np.arange(conversations), turns)
    log_length = np.log(kind.tokens) + kind.easier * deviation[owner]
    length = np.exp(log_length + rng.normal(0, kind.length_sigma, len(owner)))
    loops = rng.random(conversations) < kind.looping
    length = np.where(loops[owner], MAX_TOKENS, np.clip(length, 6, MAX_TOKENS)).astype(np.int64)
    return Prompts(kind.mean + kind.spread * deviation, loops, rng.random(conversations), owner, length)


def decode(given: Prompts, shift: Floats, seeds: int, seed: int) -> Counts:
    """Every conversation decoded `seeds` times by a drafter whose logit acceptance is `shift` higher.

    shift: shape (conversations, K) or (conversations, 1), by position.
    """
    rng = np.random.default_rng(seed)
    conversations = len(given.logit)
    found = np.zeros((conversations, seeds, 2 + 2 * K), np.int32)
    base = (given.logit[:, None] + shift)[given.owner]
    base = np.where(given.loops[given.owner][:, None], 6.0, base) * np.ones(K)
    for sample in range(seeds):
        on = np.arange(len(given.owner))
        left = given.length - 1  # the prefill emits the first token
        state = rng.normal(size=len(on))
        while len(on):
            state[on] = 0.8 * state[on] + 0.6 * rng.normal(size=len(on))
            accepts = rng.random((len(on), K)) < expit(base[on] + 0.7 * state[on, None])
            accepted = np.cumprod(accepts, axis=1)
            total = accepted.sum(1)
            row = np.concatenate(
                [np.ones((len(on), 1), int), total[:, None], accepted, np.ones((len(on), 1), int), accepted[:, :-1]], 1
            )
            np.add.at(found[:, sample], given.owner[on], row)
            left[on] -= total + 1
            on = on[left[on] > 0]
    return found


def tau(counts: Counts) -> float:
    """1 + accepted / steps of a whole population."""
    return 1 + float(counts[..., 1].sum(dtype=float) / counts[..., 0].sum(dtype=float))


def solve(of: Callable[[float], Counts], wanted: float, low: float, high: float, tolerance: float = 1e-4) -> float:
    """The argument in [low, high] at which a population has tau `wanted`; `of` decodes with fixed random numbers."""
    found: Any = bisect(lambda x: tau(of(x)) - wanted, low, high, xtol=tolerance)
    return float(found)


RARE = 0.08
"""Share of the prompts that carries a loss where few do."""
GAIN = 1.0
"""In logits, of the tenth of the prompts that gains."""

EFFECTS = (
    "none",
    "a tenth gains, the rest lose",
    "even loss",
    "8 % of the prompts lose",
    "a tenth gains, the rest lose more",
)
"""How run b differs from run a: not at all; the same tau, but a tenth of the prompts gains much; 2 % of tau lost
evenly; a loss that few prompts carry; the second one with 2 % of tau lost."""


def pair(name: str, effect: str, seeds: int = 4, conversations: int = 8000, seed: int = 3) -> tuple[Counts, Counts]:
    """All samples of a population's conversations by two drafters (`POPULATIONS`, `EFFECTS`); seed: of run b."""
    given = prompts(POPULATIONS[name], conversations, seed=1)
    none = np.zeros((conversations, 1))
    a = decode(given, none, seeds, seed=2)
    few = given.worth < 0.1

    def falling(shift: float) -> Floats:
        return np.where(few, GAIN, -shift)[:, None] if effect.startswith("a tenth") else none - shift

    def b(shift: Floats, samples: int = seeds) -> Counts:
        return decode(given, shift, samples, seed)

    if effect == "none":
        return a, b(none)
    if effect.startswith("8 %"):
        return a, b(np.where(given.worth < RARE, -1.5, 0.0)[:, None])
    # run b has random numbers of its own, as two runs have: what it has to reach is its own tau without any effect
    wanted = tau(b(none, 1)) * (1.0 if effect == EFFECTS[1] else 0.98)
    return a, b(falling(solve(lambda shift: b(falling(shift), 1), wanted, -0.2, 2.0, 5e-3)))


def draw(counts: tuple[Counts, ...], seeds: int, clusters: int, draws: int, rng: np.random.Generator) -> list[Floats]:
    """Counts of `draws` suites of `clusters` conversations, the first `seeds` summed: (draws, clusters, columns)."""
    picked = rng.integers(len(counts[0]), size=(draws, clusters))
    return [run[:, :seeds].sum(axis=1)[picked].astype(float) for run in counts]


def change(a: Counts, b: Counts, seeds: int) -> float:
    """The true change of tau in percent, of the samples that are drawn from."""
    return 100 * (tau(b[:, :seeds]) / tau(a[:, :seeds]) - 1)
