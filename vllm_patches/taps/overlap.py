"""Listener that records r_j = min(1, p_j(d_j)/q_j(d_j)) and alpha_j = sum_x min(p_j, q_j) of every sampled draft.

Both come from the verifier's own tensors, for every drafting method, and are computed nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vllm_patches.pieces import Rows, softmax_pieces
from vllm_patches.taps.recorder import Recorder
from vllm_patches.taps.tap import Step


class Overlap:
    """Records r and alpha [2, R] of each step; NaN for greedy requests and for drafts that were none."""

    def __init__(self) -> None:
        self._recorder = Recorder()

    def hear(self, step: Step) -> None:
        """Record the step, unless all of it is greedy. Before the verifier runs: it may work in place."""
        if step.greedy is True:
            return
        values = measure_logits(step.drafts, step.logits, step.q)
        if step.greedy is not False:
            values = values.masked_fill(step.greedy, torch.nan)
        self._recorder.add(step.names, step.counts, values)

    def drain(self) -> dict[str, Any]:
        """`Recorder.drain`: kinds r, alpha."""
        return self._recorder.drain()

    def close(self) -> None:
        """There is nothing to undo."""


def start(runner: Any) -> Overlap:
    """A listener for any model runner."""
    return Overlap()


def measure(drafts: Tensor, p: Tensor, q: Tensor | None) -> Tensor:
    """r and alpha [2, R] of drafts [R] under p [R, V] and q [R, V]; q None is the point mass on the draft.

    NaN for drafts that were none (id -1).
    """
    token = drafts.clamp(min=0).long()[:, None]
    at_draft = p.gather(1, token)[:, 0]
    if q is None:
        values = torch.stack([at_draft, at_draft])
    else:
        ratio = (at_draft / q.gather(1, token)[:, 0]).clamp(max=1).nan_to_num(0)
        values = torch.stack([ratio, torch.minimum(p, q).sum(-1)])
    return values.masked_fill(drafts < 0, torch.nan)


def measure_logits(drafts: Tensor, logits: Tensor | Rows, q: Tensor | Rows | None) -> Tensor:
    """`measure` with p = softmax(logits) [R, V] and q [R, V], made for a bounded number of rows at a time."""
    parts = [measure(drafts[part], p, None if q is None else q[part]) for part, p in softmax_pieces(logits)]
    return torch.cat(parts, dim=1) if parts else torch.zeros(2, 0, device=drafts.device)
