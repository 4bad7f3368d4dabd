"""EAGLE-3 drafter (arXiv 2503.01840): one decoder layer that reads the target's hidden states and recycles its own.

With x the tokens and g_i the target's residual stream at token i after the layers `AUX_LAYERS`, joined:

* draft position 1 reads token x_{i+1} and state fc(g_i), and predicts x_{i+2};
* draft position j reads token x_{i+j} and the layer's own output at position j - 1, and predicts x_{i+j+1}.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speceval.zoo.chain import Chain
from speceval.zoo.llama import MLP, Projections, RMSNorm, initialise, rotation
from speceval.zoo.recipe import Recipe
from speceval.zoo.target import Target
from speceval.zoo.training import Batch, Drafter, pick

AUX_LAYERS = (1, 2, 3)  # the residual stream after so many layers


class Midlayer(nn.Module):
    """The drafter's decoder layer: a Llama layer whose attention reads [token embedding, state]."""

    def __init__(self, hidden: int, intermediate: int, heads: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(hidden)
        self.hidden_norm = RMSNorm(hidden)
        self.self_attn = Projections(2 * hidden, hidden, heads)
        self.post_attention_layernorm = RMSNorm(hidden)
        self.mlp = MLP(hidden, intermediate)


class Eagle3(Drafter):
    """`state_dict` is the checkpoint, but for the vocabulary map; token embeddings are the target's."""

    def __init__(self, recipe: Recipe, draft_ids: Tensor) -> None:
        super().__init__()
        hidden = recipe.hidden_size
        self.depth, self.draft_ids = recipe.max_k, draft_ids
        self.head_dim = hidden // recipe.heads
        self.fc = nn.Linear(len(AUX_LAYERS) * hidden, hidden, bias=False)
        self.midlayer = Midlayer(hidden, recipe.draft_intermediate_size, recipe.heads)
        self.norm = RMSNorm(hidden)
        self.lm_head = nn.Linear(hidden, len(draft_ids), bias=False)

    def forward(self, batch: Batch) -> Tensor:
        layer, attention, anchors = self.midlayer, self.midlayer.self_attn, batch.anchors
        streams = torch.cat([batch.streams[layer - 1] for layer in AUX_LAYERS], dim=-1)
        state = self.fc(streams[:, :-1])
        tokens = layer.input_layernorm(batch.embedded[:, 1:])
        turn = rotation(torch.arange(state.shape[1]), self.head_dim)
        _, k, v = attention.split(torch.cat((tokens, layer.hidden_norm(state)), dim=-1), turn)
        chain = Chain(anchors, (k, v))
        state = pick(state, anchors)
        logits = []
        for j in range(1, self.depth + 1):
            turn = rotation(anchors[:, None] + j - 1, self.head_dim)
            inputs = torch.cat((pick(tokens, anchors + j - 1), layer.hidden_norm(state)), dim=-1)
            x = state + attention.join(chain.attend(j, *attention.split(inputs, turn)))
            state = x + layer.mlp(layer.post_attention_layernorm(x))
            logits.append(self.lm_head(self.norm(state)))
        return torch.stack(logits)


def start(recipe: Recipe, target: Target, own: tuple[Tensor, Tensor]) -> Eagle3:
    """An untrained drafter; output map and last norm are the target's, which saves steps."""
    draft_ids = draft_vocabulary(*own, recipe.vocab_size, recipe.draft_vocab_size)
    drafter = Eagle3(recipe, draft_ids)
    initialise(drafter, recipe.seed)
    with torch.no_grad():
        drafter.lm_head.weight.copy_(target.lm_head.weight[draft_ids])
        drafter.norm.weight.copy_(target.model.norm.weight)
    return drafter


def draft_vocabulary(tokens: Tensor, sampled: Tensor, vocab_size: int, size: int) -> Tensor:
    """Target ids [size] of the tokens that the target samples most often, in increasing order."""
    counts = torch.bincount(tokens[sampled], minlength=vocab_size)
    return counts.argsort(descending=True, stable=True)[:size].sort().values
