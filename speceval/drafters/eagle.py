"""EAGLE (arXiv 2401.15077): a decoder layer that reads the target's last states and feeds its own output back.

With h_i the target's normed last state: draft position 1 reads token x_{i+1} and h_i, position j token x_{i+j} and the
layer's own output at position j - 1, which is no longer normed. Embeddings and output map are the target's, where the
checkpoint has none.
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


class Eagle(Loaded):
    """One Llama layer without a norm before its attention, as vLLM has it (models/llama_eagle.py)."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor], k: int) -> None:
        super().__init__(config, {name.removeprefix("model."): tensor for name, tensor in weights.items()}, k)
        if any(name.startswith("layers.1.") for name in self.weights):
            raise UserError("it has more than one layer: measure it with `run --replay`")
        if "layers.0.self_attn.q_proj.weight" not in self.weights:
            raise UserError("its layer is not Llama's: measure it with `run --replay`")
        if config.get("logit_scale", 1.0) != 1.0:
            raise UserError("its config.json has logit_scale: measure it with `run --replay`")
        self._eps = float(config.get("rms_norm_eps", 1e-6))
        heads = int(config["num_attention_heads"])
        self._attention = Attention(
            self.weights, "layers.0.self_attn.", heads, int(config.get("num_key_value_heads") or heads)
        )
        self._rotary = Rotary.of(config, len(self.weight("layers.0.self_attn.q_proj")) // heads)

    def __call__(self, tokens: Tensor, states: States, places: Tensor) -> Iterator[Tensor]:
        """Logits of each draft position."""
        embedded = F.embedding(tokens[:, 1:], self.weights.get("embed_tokens.weight", states.embedding))
        turn = self._rotary.at(torch.arange(embedded.shape[1], device=tokens.device))
        chain = Chain(places, *self._attention.keys(self._inputs(embedded, states.final[:, :-1]), turn))
        state = pick(states.final, places)
        head = self.weights.get("lm_head.weight", states.output)
        for j in range(1, self.k + 1):
            inputs = self._inputs(pick(embedded, places + j - 1), state)
            turn = self._rotary.at(places[:, None] + j - 1)
            own = self._attention.keys(inputs, turn) if j > 1 else None
            x = inputs + self._attention.join(chain.attend(self._attention.queries(inputs, turn), own))
            after = norm(x, self.weight("layers.0.post_attention_layernorm"), self._eps)
            state = x + mlp(after, self.weights, "layers.0.mlp.")
            yield F.linear(state, head)

    def _inputs(self, embedded: Tensor, state: Tensor) -> Tensor:
        return F.linear(torch.cat((embedded, state), dim=-1), self.weight("fc"), self.weights.get("fc.bias"))
