"""Multi-token prediction as in DeepSeek-V3 (arXiv 2412.19437, section 2.2), with a dense layer.

With h_i the target's normed last state: draft position 1 reads token x_{i+1} and h_i, position j token x_{i+j} and the
normed output of position j - 1. Embeddings and output map are the target's. The first token reads as zero, as in vLLM
(models/deepseek_mtp.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speceval.drafters.base import Loaded, States, pick
from speceval.drafters.llama import Chain, Rotary, Turn, mlp, norm, rotate_pairs
from speceval.errors import UserError


class MTP(Loaded):
    """One layer, whose tensors are called "model.layers.N.…" after the target's layers."""

    spare = rf"{Loaded.spare}|embed_tokens\.weight|shared_head\.head\.weight"

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor], k: int) -> None:
        first = int(config["num_hidden_layers"])
        found = {int(match[1]) for name in weights if (match := re.match(r"model\.layers\.(\d+)\.", name))}
        prefix = f"model.layers.{first}."
        if first not in found or f"{prefix}self_attn.kv_a_proj_with_mqa.weight" not in weights:
            raise UserError("its MTP layer is not DeepSeek's: measure it with `run --replay`")
        if int(config.get("num_nextn_predict_layers") or 1) > 1:
            raise UserError("it has more than one MTP layer: measure it with `run --replay`")
        if f"{prefix}mlp.gate_proj.weight" not in weights:
            raise UserError("its MTP layer has experts: measure it with `run --replay`")
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        super().__init__(config, own, k)
        self._eps = float(config.get("rms_norm_eps", 1e-6))
        self._heads = int(config["num_attention_heads"])
        self._latent, self._plain = int(config["kv_lora_rank"]), int(config["qk_nope_head_dim"])
        self._turned, self._value = int(config["qk_rope_head_dim"]), int(config["v_head_dim"])
        self._rotary = Rotary.of(config, self._turned)

    def __call__(self, tokens: Tensor, states: States, places: Tensor) -> Iterator[Tensor]:
        """Logits of each draft position."""
        embedded = F.embedding(tokens[:, 1:], states.embedding)
        embedded[:, 0] = 0
        embedded = norm(embedded, self.weight("enorm"), self._eps)
        turn = self._rotary.at(torch.arange(embedded.shape[1], device=tokens.device))
        keys, values = self._keys(self._normed(embedded, states.final[:, :-1])[0], turn)
        chain = Chain(places, keys, values, (self._plain + self._turned) ** -0.5)
        state = pick(states.final, places)
        for j in range(1, self.k + 1):
            normed, x = self._normed(pick(embedded, places + j - 1), state)
            turn = self._rotary.at(places[:, None] + j - 1)
            attended = chain.attend(self._queries(normed, turn), self._keys(normed, turn) if j > 1 else None)
            x = x + F.linear(attended.transpose(1, 2).flatten(2), self.weight("self_attn.o_proj"))
            x = x + mlp(norm(x, self.weight("post_attention_layernorm"), self._eps), self.weights, "mlp.")
            state = norm(x, self.weight("shared_head.norm"), self._eps)
            yield F.linear(state, states.output)

    def _normed(self, embedded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What the attention reads, and what is added to its result."""
        joined = torch.cat((embedded, norm(state, self.weight("hnorm"), self._eps)), dim=-1)
        x = F.linear(joined, self.weight("eh_proj"))
        return norm(x, self.weight("input_layernorm"), self._eps), x

    def _queries(self, x: Tensor, turn: Turn) -> Tensor:
        """[batch, heads, time, size]."""
        if "self_attn.q_a_proj.weight" in self.weights:
            narrow = norm(
                F.linear(x, self.weight("self_attn.q_a_proj")), self.weight("self_attn.q_a_layernorm"), self._eps
            )
            q = F.linear(narrow, self.weight("self_attn.q_b_proj"))
        else:
            q = F.linear(x, self.weight("self_attn.q_proj"))
        q = q.unflatten(-1, (self._heads, -1)).transpose(1, 2)
        return torch.cat((q[..., : self._plain], rotate_pairs(q[..., self._plain :], turn)), dim=-1)

    def _keys(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Keys and values [batch, heads, time, size], which come from a latent vector."""
        compressed = F.linear(x, self.weight("self_attn.kv_a_proj_with_mqa"))
        latent, turned = compressed.split((self._latent, self._turned), dim=-1)
        latent = norm(latent, self.weight("self_attn.kv_a_layernorm"), self._eps)
        kv = F.linear(latent, self.weight("self_attn.kv_b_proj")).unflatten(-1, (self._heads, -1)).transpose(1, 2)
        k, v = kv.split((self._plain, self._value), dim=-1)
        turned = rotate_pairs(turned[:, None], turn).expand(-1, self._heads, -1, -1)
        return torch.cat((k, turned), dim=-1), v
