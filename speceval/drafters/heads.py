"""Drafters that are heads on the target's normed last state h_i: MEDUSA (arXiv 2401.10774) and MLP speculators
(arXiv 2404.19124).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from speceval.drafters.base import Loaded, States, pick
from speceval.errors import UserError

EPS = 1e-6


OWN_ROWS = "drafts_own_rows_alone"
"""Field of a config.json (`catalog.packed`): most rows of the output map are all the same."""


@dataclass(frozen=True)
class Map:
    """An output map [V, hidden size], most of whose rows are the same: their logits are one product."""

    ids: Tensor
    """Of the rows that differ from the commonest one [D]."""
    rows: Tensor
    common: Tensor
    size: int

    @classmethod
    def of(cls, weight: Tensor) -> Map:
        """More than half of the rows have to be the same."""
        row = weight[(weight[:, 0] == weight[:, 0].median()).nonzero()[0, 0]]
        ids = (weight != row).any(-1).nonzero()[:, 0]
        return cls(ids, weight[ids], row, len(weight))

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [..., V] of x [..., hidden size]."""
        logits = (x @ self.common)[..., None].repeat(*[1] * (x.ndim - 1), self.size)
        logits[..., self.ids] = F.linear(x, self.rows)
        return logits


class Medusa(Loaded):
    """Head j predicts x_{i+j+1} from h_i alone, through residual blocks x + silu(W x + b)."""

    spare = rf"{Loaded.spare}|token_map"

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor], k: int) -> None:
        super().__init__(config, weights, k)
        self.most = int(config.get("num_heads") or config.get("medusa_num_heads") or 0)
        if "token_map" in weights:
            self.draft_ids = weights["token_map"].long()
        if not any(name.startswith("blocks.0.") for name in weights):
            raise UserError("its tensors have the names of the first MEDUSA checkpoints: convert it as for vLLM")
        self._layers = int(config.get("num_hidden_layers") or config.get("medusa_num_layers") or 1)
        self._map = Map.of(self.weights["lm_head.weight"]) if config.get(OWN_ROWS) else None

    def __call__(self, tokens: Tensor, states: States, places: Tensor) -> Iterator[Tensor]:
        """Logits of each draft position."""
        state = pick(states.final, places)
        for j in range(self.k):
            x = state
            for layer in range(self._layers):
                name = f"blocks.{j}.layers.{layer}"
                x = x + F.silu(F.linear(x, self.weight(name), self.weights.get(f"{name}.bias")))
            head = 0 if self.config.get("original_lm_head") else j
            name = f"lm_heads.{head}"
            shared = f"{name}.weight" not in self.weights and "lm_head.weight" in self.weights
            yield self._map(x) if shared and self._map else F.linear(x, self.weight("lm_head" if shared else name))


class MLPSpeculator(Loaded):
    """Each head mixes the newest token into a state of its own: s_j = gelu(norm(P_j s_{j-1} + w E_j[x_{i+j}]))."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor], k: int) -> None:
        super().__init__(config, {name.removeprefix("speculator."): tensor for name, tensor in weights.items()}, k)
        self.most = int(config["n_predict"])
        self._map = Map.of(self.weights["head.0.weight"]) if config.get(OWN_ROWS) else None

    def __call__(self, tokens: Tensor, states: States, places: Tensor) -> Iterator[Tensor]:
        """Logits of each draft position."""
        inner, heads = int(self.config.get("inner_dim") or 0), self.most or 1
        state = pick(states.final, places)
        inner = inner or state.shape[-1]
        if self.config.get("scale_input"):
            state = F.rms_norm(state, state.shape[-1:], eps=EPS) / math.sqrt(2)
        state_weight = 0.5 ** (0.5 / heads)
        token_weight = math.sqrt((1 - state_weight**2) * inner / 2) / state_weight
        for j in range(self.k):
            embedded = F.embedding(
                tokens.gather(1, (places + j + 1).clamp(max=tokens.shape[1] - 1)), self._part("emb", j)
            )
            mixed = F.linear(state, self._part("proj", j)) + token_weight * embedded
            state = F.gelu(F.rms_norm(mixed, (inner,), self._part("ln", j), EPS) + self._part("ln", j, "bias"))
            tied = self._map if self.config.get("tie_weights") or j == 0 else None
            yield tied(state) if tied else F.linear(state, self._part("head", j))

    def _part(self, name: str, j: int, kind: str = "weight") -> Tensor:
        """A tensor of head j; where heads are tied they share those of the first (the projections: of the second)."""
        tied = (1 if j else 0) if name == "proj" else 0
        own = f"{name}.{j}.{kind}"
        return self.weights[f"{name}.{tied}.{kind}" if self.config.get("tie_weights") else own]
