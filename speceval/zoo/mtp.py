"""Multi-token prediction as in DeepSeek-V3 (arXiv 2412.19437, section 2.2), with a dense layer, for the Llama target.

With h_i the target's normed last state at token i:

* draft position 1 reads token x_{i+1} and state h_i, and predicts x_{i+2};
* draft position j reads token x_{i+j} and the normed output of position j - 1, and predicts x_{i+j+1}.

Embeddings and output map are the target's. Token x_1 reads as zero, as in vLLM (models/deepseek_mtp.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speceval.zoo.chain import Chain
from speceval.zoo.llama import MLP, RMSNorm, initialise, rotate_pairs, rotation
from speceval.zoo.recipe import Recipe
from speceval.zoo.target import Target
from speceval.zoo.training import Batch, Drafter, pick


class LatentProjections(nn.Module):
    """DeepSeek's attention: keys and values from a latent vector, queries and keys rotated in their second half."""

    def __init__(self, hidden: int, heads: int, latent: int) -> None:
        super().__init__()
        head_dim = hidden // heads
        self.heads, self.half = heads, head_dim // 2  # rotated and unrotated half
        self.q_proj = nn.Linear(hidden, heads * head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, latent + self.half, bias=False)
        self.kv_a_layernorm = RMSNorm(latent)
        self.kv_b_proj = nn.Linear(latent, heads * (self.half + head_dim), bias=False)
        self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)

    def split(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [batch, heads, time, head_dim], of x [batch, time, hidden]."""
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        compressed = self.kv_a_proj_with_mqa(x)
        latent, rotary = compressed[..., : -self.half], compressed[..., -self.half :]
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = kv[..., : self.half], kv[..., self.half :]
        q = torch.cat((q[..., : self.half], rotate_pairs(q[..., self.half :], turn)), dim=-1)
        rotary = rotate_pairs(rotary[:, None], turn).expand(-1, self.heads, -1, -1)
        return q, torch.cat((k, rotary), dim=-1), v

    def join(self, heads: Tensor) -> Tensor:
        """Output map of attention results [batch, heads, time, head_dim]."""
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class MTP(Drafter):
    """`state_dict` is the checkpoint's layer but for what is the target's: embeddings and output map."""

    embeddings: Tensor
    output_map: Tensor

    def __init__(self, recipe: Recipe, target: Target) -> None:
        super().__init__()
        hidden = recipe.hidden_size
        self.depth, self.draft_ids = recipe.max_k, torch.arange(recipe.vocab_size)
        self.enorm, self.hnorm = RMSNorm(hidden), RMSNorm(hidden)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.input_layernorm = RMSNorm(hidden)
        self.self_attn = LatentProjections(hidden, recipe.heads, recipe.latent_size)
        self.post_attention_layernorm = RMSNorm(hidden)
        self.mlp = MLP(hidden, recipe.draft_intermediate_size)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(hidden)})
        self.register_buffer("embeddings", target.model.embed_tokens.weight.detach(), persistent=False)
        self.register_buffer("output_map", target.lm_head.weight.detach(), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        attention, anchors = self.self_attn, batch.anchors
        embedded = batch.embedded[:, 1:].clone()
        embedded[:, 0] = 0
        tokens = self.enorm(embedded)
        turn = rotation(torch.arange(tokens.shape[1]), attention.half)
        x = self.eh_proj(torch.cat((tokens, self.hnorm(batch.final[:, :-1])), dim=-1))
        _, k, v = attention.split(self.input_layernorm(x), turn)
        chain = Chain(anchors, (k, v))
        state = pick(batch.final, anchors)
        logits = []
        for j in range(1, self.depth + 1):
            turn = rotation(anchors[:, None] + j - 1, attention.half)
            x = self.eh_proj(torch.cat((pick(tokens, anchors + j - 1), self.hnorm(state)), dim=-1))
            x = x + attention.join(chain.attend(j, *attention.split(self.input_layernorm(x), turn)))
            state = self.shared_head["norm"](x + self.mlp(self.post_attention_layernorm(x)))
            logits.append(state @ self.output_map.T)
        return torch.stack(logits)


def start(recipe: Recipe, target: Target, own: tuple[Tensor, Tensor]) -> MTP:
    """An untrained drafter that passes the state on: `eh_proj` is near the identity on it."""
    drafter = MTP(recipe, target)
    initialise(drafter, recipe.seed)
    hidden = recipe.hidden_size
    with torch.no_grad():
        drafter.eh_proj.weight.mul_(0.5)
        drafter.eh_proj.weight[:, hidden:] += torch.eye(hidden)
        drafter.shared_head["norm"].weight.copy_(target.model.norm.weight)
    return drafter
