"""Parts of a Llama layer, with all that a config.json can say of them: grouped heads, rotary scaling, biases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speceval.errors import UserError

Weights = dict[str, Tensor]
Turn = tuple[Tensor, Tensor]
"""Cosines and sines [..., head_dim / 2]."""


@dataclass(frozen=True)
class Rotary:
    """The rotary position embedding of a config.json."""

    rates: Tensor
    """Radians a position [head_dim / 2]."""

    @classmethod
    def of(cls, config: dict[str, Any], head_dim: int) -> Rotary:
        """Plain, linear or Llama 3's. Raises `UserError` for another kind."""
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        theta = scaling.get("rope_theta") or config.get("rope_theta") or 10000.0
        rates = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind == "linear":
            rates = rates / scaling["factor"]
        elif kind == "llama3":
            rates = _llama3(rates, scaling)
        elif kind != "default":
            raise UserError(f"rotary embedding of kind '{kind}': a drafter with it is measured with `run --replay`")
        return cls(rates)

    def at(self, positions: Tensor) -> Turn:
        """Of positions [...]."""
        angles = positions.float()[..., None] * self.rates.to(positions.device)
        return angles.cos(), angles.sin()


def _llama3(rates: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Long waves are stretched by `factor`, short ones are left, between them a mixture."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves = scaling["original_max_position_embeddings"] * rates / (2 * math.pi)  # in the original context
    share = ((waves - low) / (high - low)).clamp(0, 1)
    return share * rates + (1 - share) * rates / factor


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis."""
    return F.rms_norm(x, weight.shape, weight, eps)


def mlp(x: Tensor, weights: Weights, prefix: str) -> Tensor:
    """Gated SiLU feed-forward."""
    gate, up, down = (weights[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Rotate the pairs (x[i], x[i + head_dim / 2])."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_pairs(x: Tensor, turn: Turn) -> Tensor:
    """Rotate the pairs (x[2 i], x[2 i + 1])."""
    cos, sin = turn
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


@dataclass(frozen=True)
class Attention:
    """Query, key, value and output maps of one layer; who attends to whom is the caller's affair."""

    weights: Weights
    prefix: str
    heads: int
    kv_heads: int

    def queries(self, x: Tensor, turn: Turn) -> Tensor:
        """Rotated queries [batch, heads, time, head_dim] of x [batch, time, inputs]."""
        return rotate(self._heads(x, "q", self.heads), turn)

    def keys(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Rotated keys, and values, likewise."""
        k, v = self._heads(x, "k", self.kv_heads), self._heads(x, "v", self.kv_heads)
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, dim=1) for each in (rotate(k, turn), v))
        return k, v

    def join(self, heads: Tensor) -> Tensor:
        """Output map of attention results [batch, heads, time, head_dim]."""
        return F.linear(heads.transpose(1, 2).flatten(2), self.weights[f"{self.prefix}o_proj.weight"])

    def _heads(self, x: Tensor, name: str, count: int) -> Tensor:
        bias = self.weights.get(f"{self.prefix}{name}_proj.bias")
        return (
            F.linear(x, self.weights[f"{self.prefix}{name}_proj.weight"], bias)
            .unflatten(-1, (count, -1))
            .transpose(1, 2)
        )


class Chain:
    """Who attends to whom where a layer feeds its own output back.

    Draft position j of place i stands at position i + j - 1. It attends to the position-1 keys of all places up to i,
    which an engine has in its cache, and to the later keys of its own chain.
    """

    def __init__(self, places: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> None:
        """`places` [batch, n]; `keys`, `values` [batch, heads, time, head_dim] of draft position 1 at all tokens."""
        self._keys, self._values, self._scale = keys, values, scale
        self._hidden = torch.arange(keys.shape[2], device=places.device) > places[:, None, :, None]
        self._later: list[tuple[Tensor, Tensor]] = []

    def attend(self, q: Tensor, own: tuple[Tensor, Tensor] | None) -> Tensor:
        """Results of draft positions 1, 2, … in order; all are [batch, heads, n, head_dim].

        `own`: keys and values of this position; None for the first, whose own are among those of all places.
        """
        if own is not None:
            self._later.append(own)
        q = q * (q.shape[-1] ** -0.5 if self._scale is None else self._scale)
        scores = (q @ self._keys.mT).masked_fill_(self._hidden, -torch.inf)
        later = [(q * key).sum(-1, keepdim=True) for key, _ in self._later]
        top = torch.cat([scores.amax(-1, keepdim=True), *later], dim=-1).amax(-1, keepdim=True)
        shares = scores.sub_(top).exp_()
        total, out = shares.sum(-1, keepdim=True), shares @ self._values
        for score, (_, value) in zip(later, self._later, strict=True):
            share = (score - top).exp()
            total, out = total + share, out + share * value
        return out / total
