"""Patch `v1-missing-q`: a request without cached q loses its own q only, not the batch's (cf. gpu_model_runner.py).

vLLM keeps the q of the last drafting step. A request may come with drafts of an earlier step, or with padding in
place of drafts; stock code then verifies the whole batch without q.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm_patches.patches.v1_drafting import has_grammar, keeps_q
from vllm_patches.taps.counters import COUNTS, ONE_HOT, PADDED, STRUCTURED, WITH_Q


def replace(original: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement needs nothing of the original."""
    return get_spec_decode_draft_probs


def get_spec_decode_draft_probs(self: Any, spec_decode_metadata: Any) -> torch.Tensor | None:
    """q of all draft tokens of the step [num_tokens, V], or None if no request has any (then all are one-hot)."""
    COUNTS[PADDED] += sum(padded(self, index) for index, k in enumerate(spec_decode_metadata.num_draft_tokens) if k)
    if not keeps_q(self):
        return None
    cached = {} if self._draft_probs is None else dict(zip(self._draft_prob_req_ids, self._draft_probs, strict=True))
    drafts = spec_decode_metadata.draft_token_ids.split(spec_decode_metadata.num_draft_tokens)
    rows, found = [], False
    for index, (req_id, ids) in enumerate(zip(self.input_batch.req_ids, drafts, strict=True)):
        if not len(ids):
            continue
        kind = classify(self, index, req_id, cached)
        if kind != PADDED and req_id not in getattr(self.input_batch, "greedy_reqs", ()):
            COUNTS[kind] += 1
        found |= kind == WITH_Q
        rows.append(cached[req_id][: len(ids)] if kind == WITH_Q else ids)
    if not found:
        return None
    return torch.cat([row if row.ndim == 2 else one_hot(row, self._draft_probs) for row in rows])


def classify(runner: Any, index: int, req_id: str, cached: dict[str, torch.Tensor]) -> str:
    """Which of the counters' kinds the drafts of one request are of."""
    if padded(runner, index):
        return PADDED
    if has_grammar(runner, req_id):
        return STRUCTURED
    return WITH_Q if req_id in cached else ONE_HOT


def padded(runner: Any, index: int) -> bool:
    """Whether a request's drafts are padding, none of them real.

    Under async scheduling the host does not know the drafts, -1 stands for all of them, and no request counts.
    """
    drafts = getattr(runner.input_batch, "spec_token_ids", None)
    return drafts is not None and not runner.use_async_scheduling and drafts[index][0] < 0


def one_hot(ids: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """q of drafts taken as certain [n, V]; a row of zeros for id -1, whose residual is p itself."""
    q = like.new_zeros(len(ids), like.shape[-1])
    column = ids.long().unsqueeze(1)
    return q.scatter_(1, column.clamp(min=0), (column >= 0).to(q.dtype))
