"""Patch `v2-candidate-truncation`: `v2-draft-truncation` for drafters that choose among candidates, DFlash 2 and
LiLiCorr (cf. vllm/v1/worker/gpu/spec_decode/dflash2/speculator.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from vllm_patches.patches.v2_draft_truncation import any_truncated, truncated, truncates
from vllm_patches.patches.v2_sampling_states import states


def replace(original: Callable[..., None]) -> Callable[..., None]:
    """`DFlash2Speculator._generate_draft` whose scores are -inf for candidates outside a request's top-k and top-p."""

    @wraps(original)
    def _generate_draft(self: Any, *arguments: Any, **named: Any) -> None:
        requests = states()
        if self.draft_logits is None or not truncates(self.vllm_config) or not any_truncated(requests):
            return original(self, *arguments, **named)
        score = self._score_candidates  # LiLiCorr has its own
        self._score_candidates = lambda *given: _truncated_scores(score(*given), self, requests)
        try:
            return original(self, *arguments, **named)
        finally:
            del self._score_candidates

    return _generate_draft


def _truncated_scores(scores: Tensor, speculator: Any, requests: Any) -> Tensor:
    """Of [requests, K, candidates before, candidates]: each last row is a q before temperature."""
    rows = scores.flatten(0, 2)
    drafts = scores.shape[0] * scores.shape[1]
    places = speculator.sample_idx_mapping[:drafts].repeat_interleave(scores.shape[2])
    return truncated(rows, places, speculator.temperature, requests).view_as(scores)
