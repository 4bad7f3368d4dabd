"""What `vllm_patches.taps` recorded, from a mixture of requests' steps to one array for each finished request."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speceval.engines.base import Piece

RANDOM_SUFFIX = 9
"""vLLM's own names of requests end in "-" and eight random characters."""


class Recordings:
    """Drained steps of the requests in flight."""

    def __init__(self) -> None:
        self._steps: dict[str, list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)

    def take(self, drained: dict[str, Any], requests: Collection[str]) -> None:
        """File what a worker drained (`vllm_patches.worker.drain_tap`) under the names of our `requests`."""
        counts = drained["counts"]
        values = np.frombuffer(drained["values"], np.float32).reshape(-1, max(sum(counts), 1))
        ends = np.cumsum(counts).tolist()
        for internal, count, end in zip(drained["requests"], counts, ends, strict=True):
            name = internal if internal in requests else internal[:-RANDOM_SUFFIX]
            if count and name in requests:
                self._steps[name].append((count, values[:, end - count : end]))

    def pop(self, name: str, drafted: list[int], k: int) -> NDArray[np.float32] | None:
        """What was recorded, [len(drafted), kinds, k], of a finished request whose verify steps drafted these counts.

        Kinds: r and alpha; of a replay kept, place, p, rank and spread (`vllm_patches.taps`).

        Steps whose drafts nobody made (NaN first) are left out, and steps after the last: under async scheduling
        vLLM may start one more before it knows that the request is done. None when the record is not of those steps,
        or holds nothing.
        """
        steps = [step for step in self._steps.pop(name, []) if not math.isnan(step[1][0, 0])][: len(drafted)]
        if not steps or [count for count, _ in steps] != drafted:
            return None
        place = np.arange(k) < np.array(drafted)[:, None]
        values = np.concatenate([values for _, values in steps], axis=1)
        found = np.full((len(steps), len(values), k), np.nan, np.float32)
        for kind in range(len(values)):
            found[:, kind][place] = values[kind]
        return found


def pieces(drained: dict[str, Any], requests: Collection[str]) -> list[Piece]:
    """What `vllm_patches.worker.drain_states` returns, of our `requests`, under their names."""
    import torch

    total = sum(count for _, _, count in drained["pieces"])
    if not total:
        return []
    kind = getattr(torch, drained["dtype"])
    states = {
        name: torch.frombuffer(bytearray(content), dtype=kind).view(total, -1)
        for name, content in drained["values"].items()
    }
    ends = np.cumsum([count for _, _, count in drained["pieces"]]).tolist()
    found = []
    for (internal, start, count), end in zip(drained["pieces"], ends, strict=True):
        name = internal if internal in requests else internal[:-RANDOM_SUFFIX]
        if name in requests:
            found.append(Piece(name, start, {which: state[end - count : end] for which, state in states.items()}))
    return found
