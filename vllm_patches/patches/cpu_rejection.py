"""Patch `cpu-rejection`: the rejection step in torch (cf. vllm/v1/sample/rejection_sampler.py).

vLLM pads steps without drafts with id -1. Its CPU kernels read and write at that index and accept such drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from vllm_patches.one_uniform import invert, uniforms
from vllm_patches.pieces import softmax_pieces

PADDING = -1


def replace(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`rejection_sample` that draws its uniforms with vLLM's own function."""
    return partial(rejection_sample, original.__globals__["generate_uniform_probs"])


def rejection_sample(
    generate_uniform_probs: Callable[..., torch.Tensor],
    draft_token_ids: torch.Tensor,
    num_draft_tokens: list[int],
    max_spec_len: int,
    cu_num_draft_tokens: torch.Tensor,
    draft_probs: torch.Tensor | None,
    target_logits: torch.Tensor,
    bonus_token_ids: torch.Tensor,
    sampling_metadata: Any,
    synthetic_mode: bool = False,
    synthetic_conditional_rates: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Accepted drafts, then one recovered or bonus token, then -1: int32 [batch, max_spec_len + 1].

    `draft_token_ids` [n] of all requests in order (-1: no draft, always rejected), `draft_probs` their q [n, V] (None:
    one-hot), `target_logits` [n, V] after temperature and truncation, `bonus_token_ids` [batch, 1] or [batch].
    A draft d is accepted with probability min(1, p(d)/q(d)); the first rejected one is replaced by a draw from
    max(0, p - q), normalised (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1). Greedy requests accept argmaxes.
    In synthetic mode drafts are accepted by `accept_at_rates` instead, of greedy and of sampled requests; what follows
    a rejected one is drawn as ever.

    `options`: use_fp64_gumbel changes nothing, there is no Gumbel noise. Raises NotImplementedError for fly rejection.
    """
    if any(value is not None for name, value in options.items() if name == "fly_window_size"):
        raise NotImplementedError("fly rejection does not exist on the CPU")
    generators, counts = sampling_metadata.generators, torch.tensor(num_draft_tokens)
    drafts = draft_token_ids.long()
    if synthetic_mode or not sampling_metadata.all_greedy:
        uniform = generate_uniform_probs(len(drafts), num_draft_tokens, generators, target_logits.device)
    if not sampling_metadata.all_random:
        best = target_logits.argmax(-1)
        accepted = drafts == best
    if not sampling_metadata.all_greedy:
        random = accept(drafts, at_drafts(target_logits, drafts), draft_probs, uniform)
        if sampling_metadata.all_random:
            accepted = random
        else:
            greedy = sampling_metadata.temperature == 0
            accepted = torch.where(greedy.repeat_interleave(counts), accepted, random)
    if synthetic_mode:
        assert synthetic_conditional_rates is not None
        accepted = accept_at_rates(drafts, counts, synthetic_conditional_rates, uniform)

    columns = torch.arange(max_spec_len + 1)
    drafted = columns[:-1] < counts.unsqueeze(1)  # [batch, max_spec_len]: from one row per draft to one per request
    by_request = torch.zeros(drafted.shape, dtype=torch.bool).masked_scatter(drafted, accepted)
    lengths = by_request.cumprod(1).sum(1)
    rejecting = (lengths < counts).nonzero().squeeze(1)
    rows = (cu_num_draft_tokens - counts + lengths)[rejecting]  # of each request's first rejected draft

    last = bonus_token_ids.view(-1).long().clone()
    if sampling_metadata.all_greedy:
        last[rejecting] = best[rows]
    else:
        own = uniforms(rejecting.tolist(), generators, 1, target_logits.device)
        recovered = torch.empty_like(rows)
        for part, p in softmax_pieces(target_logits, rows):
            q = None if draft_probs is None else draft_probs[rows[part]]
            recovered[part] = recover(p, q, drafts[rows[part]], own[part])
        last[rejecting] = (
            recovered if sampling_metadata.all_random else torch.where(greedy[rejecting], best[rows], recovered)
        )
    output = torch.full((len(counts), max_spec_len + 1), PADDING)
    output[:, :-1].masked_scatter_(drafted, drafts)
    output[columns >= lengths.unsqueeze(1)] = PADDING
    return output.scatter_(1, lengths.unsqueeze(1), last.unsqueeze(1)).int()


def at_drafts(logits: torch.Tensor, drafts: torch.Tensor) -> torch.Tensor:
    """p(d) [n] of drafts [n] under softmax(logits) [n, V]; of padding, anything."""
    chosen = drafts.clamp(min=0).unsqueeze(1)
    return torch.cat(
        [drafts.new_zeros(0, dtype=torch.float32)]
        + [p.gather(1, chosen[part])[:, 0] for part, p in softmax_pieces(logits)]
    )


def accept(drafts: torch.Tensor, at_p: torch.Tensor, q: torch.Tensor | None, uniform: torch.Tensor) -> torch.Tensor:
    """Which drafts [n] pass: u < p(d) / q(d), `at_p` [n], q [n, V], `uniform` [n] in float64; padding never does."""
    at_p = at_p.double()
    at_q = torch.ones_like(at_p) if q is None else q.gather(1, drafts.clamp(min=0).unsqueeze(1)).squeeze(1).double()
    return (drafts != PADDING) & (at_q > 0) & (at_p > uniform * at_q)


def accept_at_rates(
    drafts: torch.Tensor, counts: torch.Tensor, rates: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Which drafts [n] pass whatever p and q: u < rate of the draft's position in its request; padding never does.

    `counts` [batch] drafts of each request, `rates` [K] of position 1 … K once it is reached, `uniform` [n]. The rule
    of SYNTHETIC_MODE in both kernels of vllm/v1/sample/rejection_sampler.py.
    """
    position = torch.arange(len(drafts)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return (drafts != PADDING) & (uniform < rates[position])


def recover(p: torch.Tensor, q: torch.Tensor | None, drafts: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One draw [n] from max(0, p - q) of each row, with `uniform` [n] in float64; q None: one-hot drafts.

    Works in `p` [n, V]. Where rounding leaves nothing of p - q, the draw is from p.
    """
    if q is None:
        column = drafts.unsqueeze(1)
        kept = p.gather(1, column.clamp(min=0)) * (column == PADDING)
        return invert(p.scatter_(1, column.clamp(min=0), kept), uniform)
    nothing = (p <= q).all(1)
    kept = q.masked_fill(nothing.unsqueeze(1), 0) if nothing.any() else q
    residual = p.sub_(kept).clamp_(min=0)
    return invert(residual, uniform)
