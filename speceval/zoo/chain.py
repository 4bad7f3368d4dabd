"""Attention in a chain of draft positions that feeds its own output back, as EAGLE-3 and MTP do.

Draft position j of anchor i stands at position i + j - 1. It attends to the position-1 keys of all anchors up to i,
which the engine has in its cache, and to the later keys of its own chain. Training unrolls the same chain
("training-time test", EAGLE-3's section 3.2): a drafter that has seen only the target's states in training collapses
from position 2 on.
"""

from __future__ import annotations

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


class Chain:
    """The keys and values that the chains of `anchors` [batch, n] see; `shared` are those of draft position 1."""

    def __init__(self, anchors: Tensor, shared: KeysValues) -> None:
        self.keys, self.values = shared  # [batch, heads, time, head_dim]
        time = self.keys.shape[2]
        self.visible = torch.arange(time) <= anchors[:, None, :, None]  # [batch, 1, n, time]
        self.later: list[KeysValues] = []

    def attend(self, position: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention results of draft position `position` (1, 2, ... in order); all are [batch, heads, n, head_dim]."""
        if position > 1:  # an anchor's own position-1 key is among those of all anchors
            self.later.append((k, v))
        q = q * q.shape[-1] ** -0.5
        scores = [(q @ self.keys.mT).masked_fill(~self.visible, float("-inf"))]
        scores += [(q * k).sum(-1, keepdim=True) for k, _ in self.later]
        weights = torch.cat(scores, dim=-1).softmax(-1)
        time = self.keys.shape[2]
        out = weights[..., :time] @ self.values
        for index, (_, v) in enumerate(self.later):
            out = out + weights[..., time + index, None] * v
        return out
