"""Patch `v2-custom-class`: vLLM's configuration lets the V2 runner have those drafters (cf. vllm/config/vllm.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm_patches.methods import TRANSPORT, has_class

NAMED = f"speculative method '{TRANSPORT}'"
"""What vLLM's list says of a drafter that is a class."""


def replace(original: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """`VllmConfig._get_v2_model_runner_unsupported_features` without them, where V2 is asked for.

    Where it is not, vLLM chooses by this list: it goes on to choose V1, as it does without the patches.
    """

    @wraps(original)
    def _get_v2_model_runner_unsupported_features(self: Any) -> list[str]:
        from vllm import envs

        features = original(self)
        if envs.VLLM_USE_V2_MODEL_RUNNER and has_class(self.speculative_config):
            return [feature for feature in features if feature != NAMED]
        return features

    return _get_v2_model_runner_unsupported_features
