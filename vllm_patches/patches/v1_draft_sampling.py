"""Patch `v1-draft-sampling`: drafts from the truncated distribution, seeded (cf. v1/spec_decode/llm_base_proposer.py).

Stock code drafts with the temperature alone and from the global random state. Truncating q as the target's p is
truncated raises the acceptance at small top-k or top-p; q handed to the verifier is the truncated distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from vllm_patches.one_uniform import invert, uniforms
from vllm_patches.settings import draft_truncation

GREEDY_BELOW = 1e-5
"""Temperature below which vLLM takes the argmax (`_SAMPLING_EPS` in v1/sample/sampler.py)."""

choose: Callable[[torch.Tensor], torch.Tensor] | None = None
"""What stands in for the drawn tokens [rows], if anything does (`vllm_patches.taps.replay`)."""

Drafts = tuple[torch.Tensor, torch.Tensor | None]
"""Draft tokens [rows] and the q they were drawn from [rows, V]; None for argmax drafts."""


def replace(original: Callable[..., Drafts]) -> Callable[..., Drafts]:
    """`SpecDecodeBaseProposer._sample_from_logits` with top-k, top-p and generators."""

    @wraps(original)
    def _sample_from_logits(self: Any, logits: torch.Tensor, sampling_metadata: Any) -> Drafts:
        if not self._enable_probabilistic_draft_probs or sampling_metadata.all_greedy:
            return logits.argmax(-1), None
        return sample(logits, sampling_metadata, draft_truncation(self.vllm_config))

    return _sample_from_logits


def sample(logits: torch.Tensor, metadata: Any, truncated: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Draft tokens [rows] and their q [rows, V] from `logits` [rows, V], which may be overwritten.

    `metadata` is the batch's SamplingMetadata; not `truncated`: its temperature alone has a say. Parallel drafters have
    K consecutive rows for each request.
    """
    each = len(logits) // len(metadata.temperature)
    temperature, top_k, top_p = (
        values if values is None or each == 1 else values.repeat_interleave(each)
        for values in (metadata.temperature, metadata.top_k, metadata.top_p)
    )
    greedy = None if metadata.all_random else temperature < GREEDY_BELOW
    if greedy is not None:
        temperature = temperature.masked_fill(greedy, 1.0)
    logits = logits.float().div_(temperature.unsqueeze(1))
    if truncated:
        logits = truncate(logits, top_k, top_p)
    q = logits.softmax(-1)
    drafts = draw(q, metadata.generators, each)
    if greedy is not None:
        drafts = torch.where(greedy, q.argmax(-1), drafts)
    return drafts if choose is None else choose(drafts), q


def truncate(logits: torch.Tensor, top_k: torch.Tensor | None, top_p: torch.Tensor | None) -> torch.Tensor:
    """`logits` [rows, V] with -inf outside each row's `top_k` and, of what that leaves, `top_p` [rows].

    On the CPU vLLM's own function sorts the whole vocabulary, for every draft token; this sorts the largest `top_k`.
    """
    widest = logits.shape[-1] if top_k is None or logits.device.type != "cpu" else int(top_k.max())
    if top_k is None or widest > logits.shape[-1] // 4:
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        return apply_top_k_top_p(logits, top_k, top_p)
    values, ids = logits.topk(widest)
    values = values.masked_fill(torch.arange(widest) >= top_k.unsqueeze(1), -torch.inf)
    if top_p is not None:
        mass = values.softmax(-1)
        values = values.masked_fill(mass.cumsum(-1) - mass >= top_p.unsqueeze(1), -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter_(1, ids, values)


def draw(q: torch.Tensor, generators: dict[int, torch.Generator], each: int) -> torch.Tensor:
    """One token [rows] from each row of q [rows, V]; request r (rows r * each ...) draws from `generators[r]`."""
    uniform = uniforms(range(len(q) // each), generators, each, q.device)
    return invert(q, uniform)
