"""Drafters that are heads on the target's normed last state h_i: MEDUSA (arXiv 2401.10774) and MLP speculators
(arXiv 2404.19124).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from speceval.drafters.base import Loaded, States, pick
from speceval.errors import UserError

EPS = 1e-6


class OutputMap:
    """An output map. Where most of its rows are the same one, as outside a draft vocabulary, that is computed once."""

    def __init__(self, weight: Tensor) -> None:
        row = weight[(weight[:, 0] == weight[:, 0].median()).nonzero()[0, 0]]  # the commonest, if one is
        self._own = (weight != row).any(-1).nonzero()[:, 0]
        self._size, self._row, self._weight = len(weight), row, weight[self._own]
        self._whole = weight if 2 * len(self._own) > len(weight) else None

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [..., vocabulary] of states [..., size]."""
        if self._whole is not None:
            return F.linear(x, self._whole)
        logits = (x @ self._row)[..., None].repeat(*[1] * (x.ndim - 1), self._size)
        logits[..., self._own] = F.linear(x, self._weight)
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
        self._maps: dict[str, OutputMap] = {}

    def __call__(self, tokens: Tensor, states: States, places: Tensor) -> Iterator[Tensor]:
        """Logits of each draft position."""
        state = pick(states.final, places)
        for j in range(self.k):
            x = state
            for layer in range(self._layers):
                name = f"blocks.{j}.layers.{layer}"
                x = x + F.silu(F.linear(x, self.weight(name), self.weights.get(f"{name}.bias")))
            head = 0 if self.config.get("original_lm_head") else j
            yield self._output(f"lm_heads.{head}.weight")(x)

    def _output(self, name: str) -> OutputMap:
        if name not in self._maps:
            shared = name not in self.weights and "lm_head.weight" in self.weights
            self._maps[name] = OutputMap(self.weights["lm_head.weight" if shared else name])
        return self._maps[name]


class MLPSpeculator(Loaded):
    """Each head mixes the newest token into a state of its own: s_j = gelu(norm(P_j s_{j-1} + w E_j[x_{i+j}]))."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor], k: int) -> None:
        super().__init__(config, {name.removeprefix("speculator."): tensor for name, tensor in weights.items()}, k)
        self.most = int(config["n_predict"])
        heads = range(1 if "head.1.weight" not in self.weights else self.most)
        self._maps = [OutputMap(self.weights[f"head.{j}.weight"]) for j in heads]

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
            yield self._maps[min(j, len(self._maps) - 1)](state)

    def _part(self, name: str, j: int, kind: str = "weight") -> Tensor:
        """A tensor of head j; where heads are tied they share those of the first (the projections: of the second)."""
        tied = (1 if j else 0) if name == "proj" else 0
        own = f"{name}.{j}.{kind}"
        return self.weights[f"{name}.{tied}.{kind}" if self.config.get("tie_weights") else own]
