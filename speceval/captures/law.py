"""The law of a token, from logits: temperature, then top-k, then top-p, as vLLM applies them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speceval.store.schema import SamplingFacts

ROWS = 512
"""Rows of logits at once."""


def log_law(logits: Tensor, sampling: SamplingFacts, truncated: bool = True) -> Tensor:
    """Log-probabilities [..., V] of tokens at a temperature above 0; -inf outside top-k and top-p if `truncated`."""
    logits = logits.float() / sampling.temperature
    if truncated and 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if truncated and sampling.top_p < 1:
        ordered, ids = logits.sort(-1)
        outside = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        outside[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, ids, outside), -torch.inf)
    return logits.log_softmax(-1)


def log_chance(logits: Tensor, index: Tensor, sampling: SamplingFacts, truncated: bool = True) -> Tensor:
    """`log_law` of one token each: logits [..., V], index [...]. Without truncation no table of the law is made."""
    if truncated and (0 < sampling.top_k < logits.shape[-1] or sampling.top_p < 1):
        return log_law(logits, sampling).gather(-1, index[..., None])[..., 0]
    heated = logits.float() if sampling.temperature == 1 else logits.float() / sampling.temperature
    return heated.gather(-1, index[..., None])[..., 0] - heated.logsumexp(-1)


def log_p(logits: Tensor, tokens: Tensor, sampling: SamplingFacts) -> Tensor:
    """log p [...] of `tokens` [...] under the target's `logits` [..., V]; at temperature 0 that is 0 or -inf."""
    if sampling.temperature == 0:
        return torch.where(logits.argmax(-1) == tokens, 0.0, -torch.inf)
    return log_law(logits, sampling).gather(-1, tokens[..., None])[..., 0]


def along(final: Tensor, output: Tensor, tokens: Sequence[int], sampling: SamplingFacts) -> Tensor:
    """log p [n] of `tokens` [n] after last states [n, hidden], by the output map [vocabulary, hidden]."""
    due, weight = torch.tensor(tokens, device=output.device), output.float()
    parts = [
        log_p(final[at : at + ROWS].to(output.device).float() @ weight.T, due[at : at + ROWS], sampling)
        for at in range(0, len(due), ROWS)
    ]
    return torch.cat(parts) if parts else torch.zeros(0)
