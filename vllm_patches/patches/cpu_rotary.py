"""Patch `cpu-rotary`: rotary embedding of 3-D queries (cf. vllm/model_executor/layers/rotary_embedding/base.py).

vLLM's CPU kernel mixes up the heads of a query [tokens, heads, head_size], as DeepSeek's attention passes it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

Rotated = tuple[torch.Tensor, torch.Tensor | None]


def replace(original: Callable[..., Rotated]) -> Callable[..., Rotated]:
    """`RotaryEmbedding.forward_cpu` that leaves 3-D queries and keys to vLLM's own torch code."""

    @wraps(original)
    def forward_cpu(
        self: Any, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> Rotated:
        if query.ndim == 3:
            rotated: Rotated = self.forward_native(positions, query, key)
            return rotated
        return original(self, positions, query, key)

    return forward_cpu
