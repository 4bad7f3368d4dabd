"""Patch `v2-grammar-cut`: the scheduler leaves a place for the draft that the grammar forbids (cf.
vllm/v1/core/sched/scheduler.py), so that V2's verifier gets to see it (`v2-grammar-drafts`).

Stock code cuts a request's drafts before it. Scheduling ahead of the drafts it fills up with -1, as is done here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm_patches.methods import DETERMINISTIC

PADDING = -1
"""A draft whose token the worker knows; the scheduler treats it as none."""


def replace(original: Callable[..., None]) -> Callable[..., None]:
    """`Scheduler.update_draft_token_ids` that keeps the place of the first draft that it cuts from a request."""

    @wraps(original)
    def update_draft_token_ids(self: Any, draft_token_ids: Any) -> None:
        drafts = dict(zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True))
        original(self, draft_token_ids)
        if not samples_on_v2(self.vllm_config):
            return
        for name, tokens in drafts.items():
            request = self.requests.get(name)
            if request is not None and was_cut(request, tokens):
                request.spec_token_ids = [*request.spec_token_ids, PADDING]

    return update_draft_token_ids


def samples_on_v2(config: Any) -> bool:
    """Whether an engine with this VllmConfig verifies drafts with their q on the V2 runner."""
    drafter = config.speculative_config
    sampled = drafter.draft_sample_method == "probabilistic" and drafter.method not in DETERMINISTIC
    return bool(config.use_v2_model_runner) and sampled


def was_cut(request: Any, tokens: list[int]) -> bool:
    """Whether the request's grammar forbade one of its drafts."""
    kept = len(request.spec_token_ids)
    return request.use_structured_output and kept < len(tokens) and tokens[kept] >= 0 and not request.is_prefill_chunk
