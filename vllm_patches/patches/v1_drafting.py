"""Patch `v1-draft-streams`: what the V1 runner hands to a drafter and takes back (cf. gpu_model_runner.py).

The drafter gets generators of its own for seeded requests, so that drafts neither depend on the batch nor share a
stream with the verifier; a request with a grammar drafts by argmax, because the scheduler cuts its drafts at the
first one the grammar forbids, which is lossless for certain drafts only.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace as with_fields
from functools import wraps
from itertools import accumulate
from typing import Any

import torch

from vllm_patches.methods import DETERMINISTIC, TRANSPORT
from vllm_patches.patches import v1_chunk_token
from vllm_patches.patches.v1_draft_sampling import sample
from vllm_patches.settings import draft_truncation


def replace(original: Callable[..., Any]) -> Callable[..., Any]:
    """`GPUModelRunner.propose_draft_token_ids` that gives the drafter its own sampling metadata and keeps its q."""

    @wraps(original)
    def propose_draft_token_ids(
        self: Any,
        scheduler_output: Any,
        sampled_token_ids: Any,
        sampling_metadata: Any,
        hidden_states: Any,
        sample_hidden_states: Any,
        aux_hidden_states: Any,
        spec_decode_metadata: Any,
        *rest: Any,
    ) -> Any:
        metadata = for_drafter(self, sampling_metadata)
        v1_chunk_token.note(self, scheduler_output)
        if has_heads(self):
            k = scheduler_output.num_spec_tokens_to_schedule
            newest = newest_tokens(sampled_token_ids, spec_decode_metadata, sample_hidden_states)
            drafts, q = self.drafter.draft(*newest, k, sampler(self, metadata))
        else:
            states = (hidden_states, sample_hidden_states, aux_hidden_states, spec_decode_metadata)
            drafts = original(self, scheduler_output, sampled_token_ids, metadata, *states, *rest)
            q = self._draft_probs
            if q is None:  # vLLM asks only some of its drafters
                q = getattr(self.drafter, "_last_draft_probs", None)
        self._draft_probs = q
        self._draft_prob_req_ids = None if q is None else self.input_batch.req_ids.copy()
        return drafts

    return propose_draft_token_ids


def newest_tokens(
    sampled: list[list[int]], spec_decode_metadata: Any, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden state [B, H] each request's newest token came from, and that token [B] (0 where there is none).

    `hidden` has a row for each draft of the step and one more for each request, requests in order.
    """
    drafted = spec_decode_metadata.num_draft_tokens if spec_decode_metadata is not None else [0] * len(sampled)
    starts = accumulate((count + 1 for count in drafted[:-1]), initial=0)
    rows = [start + max(len(tokens), 1) - 1 for start, tokens in zip(starts, sampled, strict=True)]
    tokens = torch.tensor([tokens[-1] if tokens else 0 for tokens in sampled], device=hidden.device)
    return hidden[torch.tensor(rows, device=hidden.device)], tokens


def sampler(runner: Any, metadata: Any) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]:
    """Draws a head's drafts as the requests ask: tokens and q, or argmaxes and None."""
    if metadata.all_greedy or not keeps_q(runner):
        return lambda logits: (logits.argmax(-1), None)
    return lambda logits: sample(logits, metadata, draft_truncation(runner.vllm_config))


def has_heads(runner: Any) -> bool:
    """Whether the drafter is one of `vllm_patches.drafters`; imported only by vLLM's own look-up of the class."""
    heads = sys.modules.get("vllm_patches.drafters")
    return heads is not None and isinstance(getattr(runner, "drafter", None), heads.Heads)


def keeps_q(runner: Any) -> bool:
    """Whether this run draws its drafts and verifies them with q.

    A runner that was built without a configuration, as vLLM's own tests build theirs, does so where it holds a q.
    """
    config = getattr(runner, "speculative_config", None)
    if config is None:
        return getattr(runner, "_draft_probs", None) is not None
    knows_q = config.method not in DETERMINISTIC and (config.method != TRANSPORT or has_heads(runner))
    return knows_q and config.draft_sample_method == "probabilistic"


def has_grammar(runner: Any, req_id: str) -> bool:
    """Whether the request's output is structured."""
    if not hasattr(runner, "requests"):
        return False
    params = runner.requests[req_id].sampling_params
    return params is not None and params.structured_outputs is not None


def for_drafter(runner: Any, metadata: Any) -> Any:
    """`metadata` with the drafts' generators, and temperature 0 for requests with a grammar."""
    if not keeps_q(runner) or metadata.all_greedy:
        return metadata
    req_ids = runner.input_batch.req_ids
    changes: dict[str, Any] = {}
    if metadata.generators:
        changes["generators"] = {
            row: draft_generator(runner.requests[req_ids[row]])
            for row in metadata.generators
            if not runner.discard_request_mask.np[row]  # an unfinished prompt: its drafts are thrown away
        }
    grammar = [has_grammar(runner, req_id) for req_id in req_ids]
    if any(grammar):
        greedy = torch.tensor(grammar, device=metadata.temperature.device)
        temperature = metadata.temperature.masked_fill(greedy, 0.0)
        random = [r not in runner.input_batch.greedy_reqs and not g for r, g in zip(req_ids, grammar, strict=True)]
        changes |= {"temperature": temperature, "all_random": False, "all_greedy": not any(random)}
    return with_fields(metadata, **changes) if changes else metadata


def draft_generator(request: Any) -> torch.Generator:
    """The generator of a seeded request's drafts: made at its first draft and kept with the request."""
    if not hasattr(request, "draft_generator"):
        generator = torch.Generator(device=request.generator.device)
        request.draft_generator = generator.manual_seed(draft_seed(request.generator.initial_seed()))
    return request.draft_generator


def draft_seed(seed: int) -> int:
    """Seed of the draft stream: unrelated to `seed` also in its low 32 bits, all that a CPU generator takes."""
    digest = hashlib.blake2b(f"draft {seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
