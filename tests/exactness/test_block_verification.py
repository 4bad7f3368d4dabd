"""`speceval verify` on block verification: what the verifier keeps is held against what p and q alone decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from speceval.exactness.checks import ACCEPTED, acceptance_checks
from speceval.exactness.draw import Continuations
from vllm_patches.taps.evidence import Evidence, rows
from vllm_patches.taps.tap import Step

V, K, ROUNDS = 8, 4, 3
ALPHA = 1e-8


def pick(law: Any, uniform: Any) -> Any:
    """A token [n] from each row of `law` [n, V] at `uniform` [n]."""
    return (uniform[:, None] > law.cumsum(1)).sum(1).clip(0, V - 1)


def recorded(requests: int, reuse: bool = False, one_by_one: bool = False) -> Continuations:
    """What is recorded of some rounds of block verification (arXiv 2403.10444, algorithm 2) of laws that know the token
    before. `reuse`: the numbers of a position that was looked at come again in the next round, as in vLLM 0.28 - 0.32.
    `one_by_one`: drafts are accepted by the standard rule.
    """
    draws = np.random.default_rng(0)
    logits = draws.normal(size=(V, V))
    p_of, q_of = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, logits + draws.normal(size=(V, V))))
    each, most = np.arange(requests), 1 + ROUNDS * (K + 1)
    decisions, drafting = draws.random((requests, most)), draws.random((requests, most))
    newest, length, listener = np.zeros(requests, int), np.zeros(requests, int), Evidence()
    for _ in range(ROUNDS):
        if not reuse:
            decisions, drafting = draws.random((requests, most)), draws.random((requests, most))
        before, chance, kept = [newest], [np.ones(requests)], np.zeros(requests, int)
        for j in range(K):
            before.append(pick(q_of[before[j]], drafting[each, length + j]))
        for j in range(1, K + 1):
            weight = (p_of / q_of)[before[j - 1], before[j]]
            chance.append(np.minimum(1, chance[-1] * weight))
            rest = np.maximum(chance[j][:, None] * p_of[before[j]] - q_of[before[j]], 0).sum(1)
            keeps = chance[j] if j == K else rest / (rest + 1 - chance[j] + 1e-12)
            if one_by_one:
                kept += (kept == j - 1) & (decisions[each, length + j - 1] <= weight)
            else:
                kept = np.where(decisions[each, length + j - 1] <= keeps, j, kept)
        contexts, drafts = np.stack(before[:-1], 1), np.stack(before[1:], 1)
        last = np.stack(before, 1)[each, kept]
        left = np.where(kept < K, np.stack(chance, 1)[each, kept], 1.0)[:, None] * p_of[last]
        left = np.where((kept < K)[:, None], np.maximum(left - q_of[last], 0) + 1e-12, left)
        newest = pick(left / left.sum(1, keepdims=True), draws.random(requests))
        emitted = np.where(np.arange(K + 1) < kept[:, None], np.pad(drafts, ((0, 0), (0, 1))), -1)
        emitted[each, kept] = newest
        p, q = (torch.tensor(law[contexts.ravel()], dtype=torch.float32) for law in (p_of, q_of))
        names = [str(request) for request in each]
        tell = listener.hear(Step(names, [K] * requests, torch.tensor(drafts.ravel()), p.log(), q, False))
        assert tell is not None
        tell(torch.tensor(emitted))
        length += kept + 1
    return Continuations(recorded=rows(listener.drain()), rejection="block", counts={"broken": 0})


@pytest.mark.parametrize(
    ("requests", "broken", "caught"),
    [(6000, {}, False), (20000, {"reuse": True}, True), (6000, {"one_by_one": True}, True)],
    ids=str,
)
def test_numbers_used_again_and_another_rule_are_caught_and_the_right_one_is_not(
    requests: int, broken: dict[str, bool], caught: bool
) -> None:
    checks = acceptance_checks(recorded(requests, **broken), ALPHA)
    assert {check.where for check in checks} == {f"draft {j}" for j in range(1, K + 1)}
    assert any(check.kind == ACCEPTED and (check.p or 0) < ALPHA for check in checks) == caught
    if not caught:
        assert min(check.p or 0 for check in checks) > ALPHA
