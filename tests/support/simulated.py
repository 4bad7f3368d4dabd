"""A speculative sampler in a few lines over a Markov chain, right or wrong in known ways, and its exact reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speceval.engines.base import Finished, Step
from speceval.exactness.draw import Continuations, Plan, slots_of
from vllm_patches.taps.evidence import MEASURED, measure_rows

VOCAB = 12
Floats = NDArray[np.float64]


def chain(seed: int, spread: float) -> Floats:
    """Logits [VOCAB, VOCAB] of the next token given the last."""
    return np.random.default_rng(seed).normal(0, spread, (VOCAB, VOCAB))


TARGET = chain(1, 1.5)
DRAFTER = 0.7 * TARGET + 0.7 * chain(2, 1.0)


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


class Chain:
    """The target in place of `reference.Reference`."""

    vocabulary = VOCAB

    def logits(self, prompt: Sequence[int], continuations: Sequence[tuple[int, ...]]) -> Any:
        longest = max(1, *(len(c) for c in continuations))
        last = np.array([[prompt[-1], *c[: longest - 1], *[0] * (longest - 1 - len(c))] for c in continuations])
        yield 0, TARGET[last]

    def next_laws(self, prompt: Sequence[int], prefixes: Sequence[tuple[int, ...]], filter_: Any) -> Any:
        return filter_.laws(TARGET[[(prompt[-1], *prefix)[-1] for prefix in prefixes]])


def plan(samples: int, tokens: int = 6, temperature: float = 1.0) -> Plan:
    return Plan([[3], [1, 5]], samples, tokens, temperature, 0, 1.0, False, 0.0, 0)


def simulate(plan: Plan, k: int, seed: int, fault: str = "") -> Continuations:
    """Continuations of `plan` with K = `k` drafts a step. `fault`: "", or what is wrong (see `step`)."""
    rng = np.random.default_rng(seed)
    p_all = softmax(TARGET / plan.temperature)
    q_all = softmax(DRAFTER / plan.temperature)
    verifier = softmax(TARGET) if fault == "no temperature" else p_all
    found = Continuations(counts={"broken": 0})
    rows: list[tuple[int, int, int, int, bool]] = []
    for index in range(plan.samples):
        tokens = [int(rng.choice(VOCAB, p=p_all[plan.prompts[plan.prompt(index)][-1]]))]
        steps = []
        while len(tokens) < plan.tokens:
            emitted = step(rng, verifier, q_all, tokens[-1], k, fault, rows)
            committed = emitted[: plan.tokens - len(tokens)]
            steps.append(Step(k, len(emitted) - 1, len(committed)))
            tokens += committed
        found.tokens.append(tuple(tokens))
        found.slots.append(slots_of(Finished(str(index), tokens, "length", None, steps, 0)))
    if rows:
        last, position, draft, out, accepted = (torch.tensor(column) for column in zip(*rows, strict=True))
        measured = measure_rows(draft, torch.tensor(verifier)[last], torch.tensor(q_all)[last], out)
        seen = dict(zip(MEASURED, measured, strict=True))
        seen |= {"position": position, "accepted": accepted, "reached": torch.ones(len(rows), dtype=torch.bool)}
        found.recorded = {name: column.numpy() for name, column in seen.items()}
    return found


def step(
    rng: np.random.Generator, p_all: Floats, q_all: Floats, last: int, k: int, fault: str, rows: list[Any]
) -> list[int]:
    """One verify step after the token `last`: accepted drafts and one more; what the verifier saw goes to `rows`.

    `fault`: "half residual" subtracts half of q, "shared" draws the recovered token with the draft's noise, "eager"
    accepts a tenth too easily; `p_all` is wrong already for "no temperature".
    """
    emitted: list[int] = []
    for position in range(1, k + 1):
        p, q = p_all[last], q_all[last]
        noise = rng.exponential(size=VOCAB)
        draft = int((q / noise).argmax())
        if rng.random() * q[draft] * (0.9 if fault == "eager" else 1.0) < p[draft]:
            rows.append((last, position, draft, draft, True))
            emitted.append(last := draft)
            continue
        residual = np.clip(p - (0.5 if fault == "half residual" else 1.0) * q, 0, None)
        fresh = noise if fault == "shared" else rng.exponential(size=VOCAB)
        recovered = int((residual / fresh).argmax())
        rows.append((last, position, draft, recovered, False))
        return [*emitted, recovered]
    return [*emitted, int(rng.choice(VOCAB, p=p_all[last]))]
