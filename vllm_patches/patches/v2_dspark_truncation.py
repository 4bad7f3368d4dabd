"""Patch `v2-dspark-truncation`: `v2-draft-truncation` for drafters of method dspark, which draw by themselves
(cf. vllm/v1/worker/gpu/spec_decode/dspark/speculator.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from vllm_patches.patches.v2_draft_truncation import any_truncated, truncated, truncates
from vllm_patches.patches.v2_sampling_states import states


def replace(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`DSparkSpeculator._sample_logits` that is given truncated logits, of its own vocabulary."""

    @wraps(original)
    def _sample_logits(self: Any, logits: Tensor, idx_map: Tensor, sample_pos: Tensor, step: int) -> Tensor:
        requests = states()
        if self.draft_logits is not None and truncates(self.vllm_config) and any_truncated(requests):
            logits = truncated(logits, idx_map, self.temperature, requests)
        return original(self, logits, idx_map, sample_pos, step)

    return _sample_logits
