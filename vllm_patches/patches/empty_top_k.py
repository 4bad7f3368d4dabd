"""Patch `empty-top-k`: a verify step whose requests have no drafts has no rows to filter (cf. rejection_sampler.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def replace(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`apply_sampling_constraints` that leaves logits [0, vocab_size] alone: vLLM takes the maximum of their top-k."""

    @wraps(original)
    def apply_sampling_constraints(
        logits: torch.Tensor, cu_num_draft_tokens: torch.Tensor, sampling_metadata: Any
    ) -> torch.Tensor:
        if logits.shape[0] == 0:
            return logits
        return original(logits, cu_num_draft_tokens, sampling_metadata)

    return apply_sampling_constraints
