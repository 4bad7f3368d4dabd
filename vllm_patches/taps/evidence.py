"""Listener that records what `speceval verify` tests of the verifier: p, q and its decision on every draft token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_patches.pieces import pieces
from vllm_patches.taps.overlap import measure
from vllm_patches.taps.recorder import Recorder
from vllm_patches.taps.tap import Step, Told, put

MEASURED = ("ratio", "alpha", "spread", "favoured", "favoured_mass", "pull", "pull_mean", "pull_spread")
"""What `measure_rows` says of a row."""
KINDS = (*MEASURED, "chance", "reached", "accepted")
"""What is recorded of a row. `reached`: every earlier draft of the step was accepted; `chance`: `chances`."""
YES_OR_NO = ("favoured", "reached", "accepted")
COUNTS = ("padded", "broken", "without_q")
"""Rows that are not recorded, for their drafts were none (id -1) or their p is no distribution; and rows of steps that
were verified as if q were the point mass on the draft."""


class Evidence:
    """Keeps the rows of sampled requests, and on the device what it counts: no step waits for it."""

    def __init__(self) -> None:
        self._recorder = Recorder(most=None)
        self._counts: dict[str, Tensor] = {}

    def hear(self, step: Step) -> Told | None:
        """What takes the step's tokens, unless all of it is greedy. p is taken now: the verifier may work in place."""
        if step.greedy is True:
            return None
        p = step.logits[:].softmax(-1, dtype=torch.float32)
        return lambda emitted: self._add(step, p, emitted)

    def _add(self, step: Step, p: Tensor, emitted: Tensor) -> None:
        counts = put(step.counts, p.device)
        owner = torch.repeat_interleave(counts, output_size=sum(step.counts))
        place = torch.arange(len(owner), device=p.device) - (counts.cumsum(0) - counts)[owner]
        token, number = emitted[owner, place], (emitted >= 0).sum(-1)[owner]
        parts = []
        for part in pieces(p):
            q = None if step.q is None else step.q[part]
            measured = measure_rows(step.drafts[part], p[part], q, token[part])
            parts.append(torch.cat([measured, weights(step.drafts[part], p[part], q)[None]]))
        *columns, weight = torch.cat(parts, dim=1) if parts else p.new_zeros(len(MEASURED) + 1, 0)
        chance = chances(weight, place, max(step.counts, default=0))
        decided = torch.stack([*columns, chance, number > place, number > place + 1]).to(p.dtype)
        sampled, real, sound = ~torch.as_tensor(step.greedy), step.drafts >= 0, torch.isfinite(p.sum(-1))
        kept = sampled & real & sound
        for name, some in (("padded", sampled & ~real), ("broken", sampled & real & ~sound), ("without_q", kept)):
            if name != "without_q" or step.q is None:
                self._counts[name] = self._counts.get(name, 0) + some.sum()
        self._recorder.add(step.names, step.counts, decided.masked_fill(~kept, torch.nan))

    def drain(self) -> dict[str, Any]:
        """`Recorder.drain` of KINDS, and COUNTS."""
        counts, self._counts = self._counts, {}
        return self._recorder.drain() | {name: int(counts.get(name, 0)) for name in COUNTS}

    def close(self) -> None:
        """There is nothing to undo."""


def start(runner: Any) -> Evidence:
    """A listener for any model runner."""
    return Evidence()


def rows(drained: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Columns of the recorded rows, from what a listener drained: KINDS, `request` and `position` (from 1)."""
    counts = np.array(drained["counts"], int)
    owner = np.repeat(np.arange(len(counts)), counts)
    position = np.arange(len(owner)) - (counts.cumsum() - counts)[owner] + 1
    values = np.frombuffer(drained["values"], np.float32).reshape(len(KINDS), -1)
    kept = ~np.isnan(values[KINDS.index("reached")])
    columns: dict[str, NDArray[Any]] = {
        name: column[kept].astype(bool if name in YES_OR_NO else np.float32)
        for name, column in zip(KINDS, values, strict=True)
    }
    return columns | {"request": np.array(drained["requests"])[owner[kept]], "position": position[kept]}


def weights(drafts: Tensor, p: Tensor, q: Tensor | None) -> Tensor:
    """p(d)/q(d) [R] of the drafts [R]; 0 for those that are none (id -1) or whose p is no distribution."""
    token = drafts.clamp(min=0).long()[:, None]
    at_draft = p.gather(1, token)[:, 0]
    weight = at_draft if q is None else at_draft / q.gather(1, token)[:, 0]
    return weight.masked_fill(drafts < 0, 0).nan_to_num(0)


def chances(weights: Tensor, place: Tensor, most: int) -> Tensor:
    """Block verification's chance to keep each draft [R] and all before it in its step: min(1, c p(d)/q(d)), with c
    that of the draft before (1 before the first). Given the drafts that is all that decides. (Sun et al. 2024, arXiv
    2403.10444, algorithm 2.)

    `weights` [R]: p(d)/q(d); `place` [R]: of the draft in its step, from 0, below `most`.
    """
    chance = weights.clamp(max=1)
    for later in range(1, most):
        chance = torch.where(place == later, (weights * chance.roll(1)).clamp(max=1), chance)
    return chance


def measure_rows(drafts: Tensor, p: Tensor, q: Tensor | None, emitted: Tensor) -> Tensor:
    """What each row says about the draft d and the token emitted in its place: MEASURED [8, R].

    ratio = min(1, p(d)/q(d)), the chance to accept this draft; alpha = sum_x min(p, q), its mean over d ~ q, and
    spread its variance; favoured: the emitted token has q > p; favoured_mass = p's mass of all such tokens. pull =
    q/p at the emitted token if p > q there, else 0, with its mean and variance over the residual max(0, p - q), which
    a token that replaces a rejected draft follows. q None stands for the point mass on d. (Leviathan et al. 2023,
    arXiv 2211.17192, section 3.)
    """
    ratio, alpha = measure(drafts, p, q)
    if q is None:
        same, none = (emitted == drafts).to(p.dtype), torch.zeros_like(ratio)
        return torch.stack([ratio, alpha, none, same, ratio, none, none, none])
    above = q > p
    second = torch.where(above, p * p / q, q).sum(-1)
    out = emitted.clamp(min=0).long()[:, None]
    residual, pull = (p - q).clamp(min=0), torch.where(p > q, q / p, 0)
    mass = residual.sum(-1).clamp(min=1e-9)
    mean = (residual * pull).sum(-1) / mass
    columns = [
        ratio,
        alpha,
        (second - alpha**2).clamp(min=0),
        above.gather(1, out)[:, 0],
        (p * above).sum(-1),
        pull.gather(1, out)[:, 0],
        mean,
        ((residual * pull**2).sum(-1) / mass - mean**2).clamp(min=0),
    ]
    return torch.stack([column.to(p.dtype) for column in columns])
