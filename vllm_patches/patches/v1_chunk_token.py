"""Patch `v1-chunk-token`: the token after a piece of a prompt (cf. vllm/v1/spec_decode/llm_base_proposer.py).

A drafter that reads token i + 1 beside the target's state at i is given the prompt's last token at the end of each
piece but the last, in place of the piece's next one; what it made of that stays in its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

SCHEDULED = "speceval_scheduled_tokens"
"""Attribute of a drafter: tokens of each request in this step."""


def note(runner: Any, scheduler_output: Any) -> None:
    """Tell the runner's drafter how many tokens of each request this step reads (`patches.v1_drafting`)."""
    if (drafter := getattr(runner, "drafter", None)) is not None:
        setattr(drafter, SCHEDULED, getattr(scheduler_output, "num_scheduled_tokens", {}))


def replace(original: Callable[..., Any]) -> Callable[..., Any]:
    """`SpecDecodeBaseProposer.prepare_next_token_ids_padded` that takes the token after what the step has read."""

    @wraps(original)
    def prepare_next_token_ids_padded(
        self: Any, sampled_token_ids: Any, requests: Any, gpu_input_batch: Any, discard_request_mask: Any
    ) -> Any:
        batch = ReadSoFar(gpu_input_batch, requests, getattr(self, SCHEDULED, {}))
        return original(self, sampled_token_ids, requests, batch, discard_request_mask)

    return prepare_next_token_ids_padded


class ReadSoFar:
    """A batch in which an unfinished prompt ends with the token after the piece that this step reads."""

    def __init__(self, batch: Any, requests: Any, scheduled: dict[str, int]) -> None:
        self._batch = batch
        self.num_tokens_no_spec = batch.num_tokens_no_spec.copy()
        for row, name in enumerate(batch.req_ids[: batch.num_reqs]):
            end = int(batch.num_computed_tokens_cpu[row]) + scheduled.get(name, 0)
            if name in scheduled and end < requests[name].num_tokens:
                self.num_tokens_no_spec[row] = end + 1

    def __getattr__(self, name: str) -> Any:
        """All else is the batch's own."""
        return getattr(self._batch, name)
