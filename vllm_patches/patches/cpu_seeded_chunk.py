"""Patch `cpu-seeded-chunk`: a prefill chunk takes nothing from its request's generator (cf. gpu_model_runner.py).

vLLM samples a token for every request of a step, also for one whose prompt is not through yet, then rewinds that
request's generator by `set_offset`: CUDA generators have an offset, CPU generators raise. Here the generator is kept
out of the step instead, so that there is nothing to rewind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np


def replace(original: Callable[..., Any]) -> Callable[..., Any]:
    """`GPUModelRunner.sample_tokens` that hides the generators of requests whose token will be discarded."""

    @wraps(original)
    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        batch, mask = getattr(self, "input_batch", None), getattr(self, "discard_request_mask", None)
        if batch is None or mask is None:  # a runner of who calls it alone: nothing is drawn
            return original(self, grammar_output)
        discarded = np.nonzero(mask.np[: batch.num_reqs])[0].tolist()
        held = {row: batch.generators.pop(row) for row in discarded if row in batch.generators}
        try:
            return original(self, grammar_output)
        finally:
            batch.generators.update(held)

    return sample_tokens
