"""Patch `v2-draft-truncation`: V2's drafts from the truncated q (cf. vllm/v1/worker/gpu/spec_decode/speculator.py).

Stock code draws them with the temperature alone. Here the logits that they are drawn from, and that stand for q, are
-inf outside the request's top-k and top-p. What they are drawn with stays vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from vllm_patches.patches.v1_draft_sampling import GREEDY_BELOW, truncate
from vllm_patches.patches.v2_sampling_states import states
from vllm_patches.settings import draft_truncation

ROW = "v2-draft-truncation"


def replace(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`DraftModelSpeculator.sample_draft` whose draft logits are truncated on the way."""

    @wraps(original)
    def sample_draft(
        self: Any,
        hidden_states: Tensor,
        sample_src_positions: Tensor,
        idx_mapping: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        draft_step: Tensor,
        draft_logits: Tensor | None,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        arguments = (hidden_states, sample_src_positions, idx_mapping, temperature, seeds, draft_step, draft_logits)
        requests = states()
        if draft_logits is None or not truncates(self.vllm_config) or not any_truncated(requests):
            return original(self, *arguments, *rest, **named)
        compute = self.compute_draft_logits
        self.compute_draft_logits = lambda *given: truncated(compute(*given), idx_mapping, temperature, requests)
        try:
            return original(self, *arguments, *rest, **named)
        finally:
            del self.compute_draft_logits

    return sample_draft


def truncates(config: Any) -> bool:
    """Whether an engine with this VllmConfig truncates its drafts, if the patch is active: in a CUDA graph of the
    drafter the host could not decide any more whether a request asks for it."""
    return draft_truncation(config) and bool(config.model_config.enforce_eager)


def row(speculator: Any) -> str:
    """The ledger row that truncates the drafts of this speculator of vLLM's; "" where none does.

    ROW if it draws in `sample_draft`, each draft by itself.
    """
    if hasattr(getattr(speculator, "model", None), "sample_sequential"):
        return ""  # its model draws with a kernel of its own (vLLM 0.33, MLA DSpark)
    drawn_by = {"_sample_logits": "v2-dspark-truncation", "candidate_sampler": "v2-candidate-truncation"}
    return next((found for name, found in drawn_by.items() if hasattr(speculator, name)), ROW)


def any_truncated(requests: Any) -> bool:
    """Whether some request has a top-k or top-p, or one that was at its place did; known to the host."""
    return requests is not None and bool(
        (requests.top_k.np < requests.vocab_size).any() or (requests.top_p.np < 1).any()
    )


def truncated(logits: Tensor, idx_mapping: Tensor, temperature: Tensor, requests: Any) -> Tensor:
    """Draft logits [rows, V], before temperature, with -inf outside what each row's request leaves of them.

    `idx_mapping` [rows]: the request's place in vLLM's states, -1 for a row that is padding; `temperature` by place.
    """
    place = idx_mapping.long().clamp(min=0)
    heat = temperature[place].unsqueeze(1)
    warm = logits.float() / torch.where(heat < GREEDY_BELOW, 1.0, heat)
    top_k = requests.top_k.gpu[place].long().clamp(max=logits.shape[-1])  # off: the target's vocabulary
    kept = truncate(warm, top_k, requests.top_p.gpu[place])
    return logits.masked_fill(kept == -torch.inf, -torch.inf)
