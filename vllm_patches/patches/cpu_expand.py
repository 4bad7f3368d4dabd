"""Patch `cpu-expand`: request parameters to draft rows in torch (cf. vllm/v1/sample/rejection_sampler.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch


def replace(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The replacement needs nothing of the original."""
    return expand_batch_to_tokens


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Repeat each request's value once per draft token: [batch_size] -> [num_tokens], same dtype.

    `cu_num_tokens` [batch_size] is cumulative: x = [a, b, c] and [2, 5, 6] give [a, a, b, b, b, c].
    Values equal to `replace_from` become `replace_to` (greedy requests: temperature 0 -> 1).

    Raises RuntimeError if `num_tokens` is not the last entry of `cu_num_tokens`.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = x.masked_fill(x == replace_from, replace_to)
    return torch.repeat_interleave(values, counts, output_size=num_tokens)
