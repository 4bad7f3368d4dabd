"""Listener that counts the V2 runner's verify steps, as `counters` has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vllm_patches.methods import DETERMINISTIC
from vllm_patches.taps.counters import ONE_HOT, PADDED, WITH_Q
from vllm_patches.taps.tap import Step, put, starts


class Count:
    """Counts on the device, where it is known which drafts are padding; read when it is drained."""

    def __init__(self, samples_drafts: bool) -> None:
        self._samples_drafts = samples_drafts
        self._sums: dict[str, Tensor] = {}

    def hear(self, step: Step) -> None:
        """Count each request of the step that has drafts."""
        if len(step.drafts) == 0:
            return
        first = put(starts(step.counts), step.drafts.device)
        padded = step.drafts[first] < 0
        self._add(PADDED, padded.sum())
        if self._samples_drafts and step.greedy is not True:
            greedy = False if step.greedy is False else torch.as_tensor(step.greedy)[first]
            self._add(ONE_HOT if step.q is None else WITH_Q, (~padded & ~torch.as_tensor(greedy)).sum())

    def _add(self, name: str, count: Tensor) -> None:
        self._sums[name] = self._sums[name] + count if name in self._sums else count

    def drain(self) -> dict[str, Any]:
        """The counts since the last call."""
        sums, self._sums = self._sums, {}
        return {name: int(count) for name, count in sums.items()}

    def close(self) -> None:
        """There is nothing to undo."""


def start(runner: Any) -> Count:
    """A listener for the V2 runner. Raises `NotImplementedError` for V1, whose steps are counted already."""
    if not runner.vllm_config.use_v2_model_runner:
        raise NotImplementedError("the V1 runner's steps are counted where q is assembled")
    config = runner.vllm_config.speculative_config
    return Count(config.draft_sample_method == "probabilistic" and config.method not in DETERMINISTIC)
