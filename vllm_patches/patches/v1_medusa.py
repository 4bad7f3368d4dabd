"""Patch `v1-medusa`: MEDUSA's drafts drawn from its heads, with q kept (cf. vllm/v1/spec_decode/medusa.py).

Stock code takes each head's argmax at any temperature. `v1-draft-streams` hands q to the runner.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from vllm_patches.patches.v1_draft_sampling import sample
from vllm_patches.settings import draft_truncation


def replace(original: Callable[..., Any]) -> Callable[..., Any]:
    """`MedusaProposer.propose` that samples."""

    @wraps(original)
    def propose(
        self: Any,
        num_speculative_tokens: int,
        target_hidden_states: torch.Tensor,
        sampling_metadata: Any,
        slot_mappings: Any = None,
    ) -> torch.Tensor:
        self._last_draft_probs = None
        if sampling_metadata.all_greedy or self.spec_config.draft_sample_method != "probabilistic":
            return original(self, num_speculative_tokens, target_hidden_states, sampling_metadata, slot_mappings)
        logits = self.model.compute_logits(self.model(target_hidden_states))[:num_speculative_tokens]
        truncated = draft_truncation(self.vllm_config)
        drafts, q = zip(*(sample(head, sampling_metadata, truncated) for head in logits), strict=True)
        self._last_draft_probs = torch.stack(q, dim=1)
        return torch.stack(drafts, dim=1)

    return propose
