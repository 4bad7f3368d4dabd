"""Values of verify steps, kept on the device until they are drained: what every listener here hands over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOST_STEPS = 4096
"""Engine steps kept between two drains; older ones are dropped, and their requests come back incomplete."""


class Recorder:
    """Values of verify steps until they are drained; `most`: engine steps that are kept (None: all)."""

    def __init__(self, most: int | None = MOST_STEPS) -> None:
        self._steps: list[tuple[list[str], list[int], Tensor]] = []
        self._most = most

    def add(self, names: list[str], counts: list[int], values: Tensor) -> None:
        """One engine step: requests, drafts of each, and their values [kinds, sum(counts)]; NaN: nothing to record.

        Requests without drafts are not kept: in V2's batches they are most.
        """
        drafting = [(name, count) for name, count in zip(names, counts, strict=True) if count]
        if not drafting:
            return
        self._steps.append(([name for name, _ in drafting], [count for _, count in drafting], values))
        if self._most is not None and len(self._steps) > self._most:
            del self._steps[0]

    def drain(self) -> dict[str, Any]:
        """All since the last call: `requests` and `counts` in order, `values` as float32 bytes [kinds, sum(counts)]."""
        steps, self._steps = self._steps, []
        values = torch.cat([step[2] for step in steps], dim=1).float().cpu().numpy().tobytes() if steps else b""
        return {
            "requests": [name for step in steps for name in step[0]],
            "counts": [count for step in steps for count in step[1]],
            "values": values,
        }
