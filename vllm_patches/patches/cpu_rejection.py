"""Patch `cpu-rejection`: the rejection step in torch (cf. vllm/v1/sample/rejection_sampler.py).

vLLM pads steps without drafts with id -1. Its CPU kernels read and write at that index and accept such drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

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
    use_fp64_gumbel: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Accepted drafts, then one recovered or bonus token, then -1: int32 [batch, max_spec_len + 1].

    `draft_token_ids` [n] of all requests in order (-1: no draft, always rejected), `draft_probs` their q [n, V] (None:
    one-hot), `target_logits` [n, V] after temperature and truncation, `bonus_token_ids` [batch, 1].
    A draft d is accepted with probability min(1, p(d)/q(d)); the first rejected one is replaced by a draw from
    max(0, p - q), normalised (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1). Greedy requests accept argmaxes.
    In synthetic mode drafts are accepted by `accept_at_rates` instead, of greedy and of sampled requests; what follows
    a rejected one is drawn as ever.

    Raises NotImplementedError for fly rejection.
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
        target_probs = target_logits.softmax(-1, dtype=torch.float32)
        random = accept(drafts, target_probs, draft_probs, uniform)
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

    last = bonus_token_ids.squeeze(1).long().clone()
    if sampling_metadata.all_greedy:
        last[rejecting] = best[rows]
    else:
        noise = exponential_noise(rejecting, target_probs, generators, use_fp64_gumbel)
        recovered = recover(target_probs[rows], None if draft_probs is None else draft_probs[rows], drafts[rows], noise)
        last[rejecting] = (
            recovered if sampling_metadata.all_random else torch.where(greedy[rejecting], best[rows], recovered)
        )
    output = torch.full((len(counts), max_spec_len + 1), PADDING)
    output[:, :-1].masked_scatter_(drafted, drafts)
    output[columns >= lengths.unsqueeze(1)] = PADDING
    return output.scatter_(1, lengths.unsqueeze(1), last.unsqueeze(1)).int()


def accept(drafts: torch.Tensor, p: torch.Tensor, q: torch.Tensor | None, uniform: torch.Tensor) -> torch.Tensor:
    """Which drafts [n] pass: u < p(d) / q(d), tables [n, V], `uniform` [n] in float64; padding never does."""
    chosen = drafts.clamp(min=0).unsqueeze(1)
    at_p = p.gather(1, chosen).squeeze(1).double()
    at_q = torch.ones_like(at_p) if q is None else q.gather(1, chosen).squeeze(1).double()
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


def recover(p: torch.Tensor, q: torch.Tensor | None, drafts: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """One draw [n] from max(0, p - q) of each row [n, V], by exponential `noise` [n, V]; q None: one-hot drafts."""
    if q is None:
        column = drafts.unsqueeze(1)
        kept = p.gather(1, column.clamp(min=0)) * (column == PADDING)
        residual = p.scatter(1, column.clamp(min=0), kept)
    else:
        residual = (p - q).clamp_(min=0)
    return (residual / noise).argmax(-1)


def exponential_noise(
    requests: torch.Tensor, like: torch.Tensor, generators: dict[int, torch.Generator], double: bool
) -> torch.Tensor:
    """One vector for each of `requests` [n] (their rows in the batch): [n, V], from the request's generator if any."""
    dtype = torch.float64 if double else like.dtype
    noise = torch.empty(len(requests), like.shape[-1], dtype=dtype).exponential_()
    for row, request in enumerate(requests.tolist()):
        if request in generators:
            noise[row].exponential_(generator=generators[request])
    return noise.clamp_(min=torch.finfo(dtype).tiny)  # a noise of 0 would make 0 / 0
