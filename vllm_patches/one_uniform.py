"""A token drawn with one uniform number, in place of a vocabulary of exponential ones. Imports torch alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch

BLOCK = 256
"""Entries whose weights are added up to one: a row is searched by its blocks, then in one of them."""
BELOW_ONE = 1 - 2**-52


def invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One index [n] from each row of `weights` [n, V], at least 0 and of any sum: the inverse of their distribution.

    `uniform` [n], float64 in [0, 1). An index whose weight is 0 is never drawn. Sums are in float64 in each block and
    over the blocks, so a probability is off by no more than float32's rounding of its block's sum (relative 1e-6).
    A row without any weight gives some index. Source: inverse transform sampling (Devroye 1986, section III.2).
    """
    width = weights.shape[1]
    if width <= 4 * BLOCK:
        return search(weights.double().cumsum(1), uniform.unsqueeze(1)).squeeze(1)
    whole = width // BLOCK * BLOCK
    masses = weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    if whole < width:
        masses = torch.cat([masses, weights[:, whole:].sum(1, keepdim=True)], 1)
    masses = masses.double()
    ends = masses.cumsum(1)
    block = search(ends, uniform.unsqueeze(1))
    mass = masses.gather(1, block)
    inside = (uniform.unsqueeze(1) * ends[:, -1:] - ends.gather(1, block) + mass) / mass
    columns = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    entries = weights.gather(1, columns.clamp(max=width - 1)).masked_fill(columns >= width, 0)
    return (block * BLOCK + search(entries.double().cumsum(1), inside)).clamp(max=width - 1).squeeze(1)


def search(ends: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The first column [n, 1] whose running sum `ends` [n, V] is beyond this share [n, 1] of the whole."""
    total = ends[:, -1:]
    point = (share.clamp(min=0) * total).minimum(total * BELOW_ONE)
    return torch.searchsorted(ends, point, right=True).clamp(max=ends.shape[1] - 1)


def uniforms(
    requests: Iterable[int], generators: dict[int, torch.Generator], each: int, device: torch.device
) -> torch.Tensor:
    """`each` numbers for each of `requests` (rows of the batch), one after the other: float64 in [0, 1).

    From the request's generator if it has one, else from the global one, which is left alone where all have their own.
    """
    rows = list(requests)
    own = [(place, generators[request]) for place, request in enumerate(rows) if request in generators]
    size, kind = len(rows) * each, {"dtype": torch.float64, "device": device}
    drawn = torch.empty(size, **kind) if len(own) == len(rows) else torch.rand(size, **kind)
    for place, generator in own:
        drawn[place * each : (place + 1) * each].uniform_(generator=generator)
    return drawn
