"""Patch `v2-grammar-drafts`: V2's verifier sees the draft that the grammar forbids (cf. vllm/v1/worker/gpu/
spec_decode/rejection_sampler.py).

Stock code takes it, and all behind it, for no drafts (`grammar_invalid_drafts`), and draws its place from p. But a
draft d ~ q that p excludes has been rejected: what is due there is max(0, p - q), normalised (arXiv 2211.17192,
theorem 1). The verifier does just that with the draft as it is, for p(d) is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def replace(original: Callable[..., Any]) -> Callable[..., Any]:
    """`RejectionSampler.__call__` that is told of fewer drafts that they are none."""

    @wraps(original)
    def call(
        self: Any,
        logits: Tensor,
        input_batch: Any,
        draft_logits: Tensor | None = None,
        invalid_drafts: Tensor | None = None,
    ) -> Any:
        if invalid_drafts is not None and draft_logits is not None:
            drafts = input_batch.input_ids[input_batch.logits_indices]
            invalid_drafts = invalid_drafts & ~excluded(logits, drafts)
        return original(self, logits, input_batch, draft_logits, invalid_drafts)

    return call


def excluded(logits: Tensor, drafts: Tensor) -> Tensor:
    """Whether the row before leaves a row's draft no probability [N]; the first row has none before it.

    `logits` [N, V] of the target under the grammar, `drafts` [N]: the token at each row, which is a draft in all but
    the first row of a request. Only such a draft is safe to verify: after one that were accepted, the grammar's mask of
    the next place would be missing.
    """
    token = drafts[1:].clamp(min=0).long()[:, None]
    gone = (logits[:-1].gather(1, token)[:, 0] == -torch.inf) & (drafts[1:] >= 0)
    return torch.cat([gone.new_zeros(1), gone])
