"""EAGLE-3 (arXiv 2503.01840): a decoder layer that reads the target's states and feeds its own output back.

With g_i the target's residual stream at token i after the layers that it reads, joined: draft position 1 reads token
x_{i+1} and fc(g_i), position j token x_{i+j} and the layer's own output at position j - 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speceval.drafters.base import Loaded, States, pick
from speceval.drafters.llama import Attention, Chain, Rotary, mlp, norm
from speceval.errors import UserError

UNSUPPORTED = ("parallel_drafting", "pard_token", "norm_output", "fc_norm", "norm_before_fc")
"""Fields of a config.json, or of its `eagle_config`, that ask for another computation than this one."""


class Eagle3(Loaded):
    """One layer, with the names of the first checkpoints ("midlayer") or those of speculators ("layers.0")."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor], k: int) -> None:
        super().__init__(config | (config.get("transformer_layer_config") or {}), renamed(weights), k)
        inner = config.get("eagle_config") or {}
        if odd := [name for name in UNSUPPORTED if self.config.get(name) or inner.get(name)]:
            raise UserError(f"its config.json has {odd[0]}: measure it with `run --replay`")
        if int(self.config.get("num_hidden_layers") or 1) > 1 or any(n.startswith("layers.1.") for n in self.weights):
            raise UserError("it has more than one layer: measure it with `run --replay`")
        self.layers = tuple(
            self.config.get("eagle_aux_hidden_state_layer_ids") or inner.get("eagle_aux_hidden_state_layer_ids") or ()
        )
        self._eps = float(self.config.get("rms_norm_eps", 1e-6))
        heads = int(self.config["num_attention_heads"])
        self._attention = Attention(
            self.weights, "layers.0.self_attn.", heads, int(self.config.get("num_key_value_heads") or heads)
        )
        self._head_dim = len(self.weight("layers.0.self_attn.q_proj")) // heads
        self._rotary = Rotary.of(self.config, self._head_dim)
        if "d2t" in weights:
            if (count := self.config.get("draft_vocab_size")) not in (None, len(weights["d2t"])):
                raise UserError(f"its d2t has {len(weights['d2t']):,} entries, its config.json {count} draft tokens")
            self.draft_ids = weights["d2t"].long() + torch.arange(len(weights["d2t"]), device=weights["d2t"].device)
            ids, vocabulary, kept = self.draft_ids, int(self.config["vocab_size"]), weights.get("t2d")
            inside = bool(((ids >= 0) & (ids < vocabulary)).all()) and len(ids.unique()) == len(ids)
            if not inside or not (kept is None or len(kept) < vocabulary or bool(kept[ids].all())):
                raise UserError("its d2t does not map each draft token to a target token of its own")

    def default_layers(self, count: int) -> tuple[int, ...]:
        """What vLLM reads of a target with so many layers where the checkpoint does not say."""
        return (2, count // 2, count - 3)

    def __call__(self, tokens: Tensor, states: States, places: Tensor) -> Iterator[Tensor]:
        """Logits of each draft position."""
        embedding = self.weights.get("embed_tokens.weight", states.embedding)
        joined = torch.cat([states.layers[layer] for layer in self.layers], dim=-1)
        state = F.linear(joined[:, :-1], self.weight("fc"))
        embedded = norm(F.embedding(tokens[:, 1:], embedding), self.weight("layers.0.input_layernorm"), self._eps)
        turn = self._rotary.at(torch.arange(state.shape[1], device=tokens.device))
        keys, values = self._attention.keys(self._inputs(embedded, state)[0], turn)
        chain = Chain(places, keys, values)
        state = pick(state, places)
        head = self.weights.get("lm_head.weight", states.output)
        for j in range(1, self.k + 1):
            inputs, residual = self._inputs(pick(embedded, places + j - 1), state)
            turn = self._rotary.at(places[:, None] + j - 1)
            own = self._attention.keys(inputs, turn) if j > 1 else None
            x = residual + self._attention.join(chain.attend(self._attention.queries(inputs, turn), own))
            after = norm(x, self.weight("layers.0.post_attention_layernorm"), self._eps)
            state = x + mlp(after, self.weights, "layers.0.mlp.")
            yield F.linear(norm(state, self.weight("norm"), self._eps), head)

    def _inputs(self, embedded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What the attention reads, and what is added to its result."""
        normed = norm(state, self.weight("layers.0.hidden_norm"), self._eps)
        return torch.cat((embedded, normed), dim=-1), normed if self.config.get("norm_before_residual") else state


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors under one set of names."""
    return {name.removeprefix("model.").replace("midlayer.", "layers.0."): tensor for name, tensor in weights.items()}
