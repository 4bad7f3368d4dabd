"""Patch `v2-heads`: the V2 runner drafts with `vllm_patches.drafters` (cf. v1/worker/gpu/spec_decode/__init__.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm_patches.methods import has_class


def replace(original: Callable[..., Any]) -> Callable[..., Any]:
    """`init_speculator` that knows them."""

    @wraps(original)
    def init_speculator(vllm_config: Any, device: Any, req_states: Any) -> Any:
        if not has_class(vllm_config.speculative_config):
            return original(vllm_config, device, req_states)
        from vllm_patches.speculator import HeadsSpeculator

        return HeadsSpeculator(vllm_config, device)

    return init_speculator
