"""MLP speculator (arXiv 2404.19124): as MEDUSA, but each head mixes the newest token into a state of its own.

With h_i the target's normed last state at token i and s_0 = h_i: s_j = gelu(norm(P_j s_{j-1} + w E_j[x_{i+j}])), and
head j predicts x_{i+j+1} from s_j. The weights of state and token, in `token_weight`, are those of the published
checkpoints' code: with them neither drowns the other at the start.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speceval.zoo.llama import initialise
from speceval.zoo.recipe import Recipe
from speceval.zoo.target import Target
from speceval.zoo.training import Batch, Drafter, pick

EPS = 1e-6


class Norm(nn.Module):
    """Root mean square norm with a bias."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, EPS) + self.bias


class MLPSpeculator(Drafter):
    """`state_dict`, each name after "speculator.", is the checkpoint."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        heads, size, hidden, vocab = recipe.draft_heads, recipe.mlp_size, recipe.hidden_size, recipe.vocab_size
        self.depth, self.draft_ids = heads, torch.arange(vocab)
        self.emb = nn.ModuleList(nn.Embedding(vocab, size) for _ in range(heads))
        self.proj = nn.ModuleList(nn.Linear(size if j else hidden, size, bias=False) for j in range(heads))
        self.ln = nn.ModuleList(Norm(size) for _ in range(heads))
        self.head = nn.ModuleList(nn.Linear(size, vocab, bias=False) for _ in range(heads))
        state_weight = 0.5 ** (0.5 / heads)
        self.token_weight = math.sqrt((1 - state_weight**2) * size / 2) / state_weight

    def forward(self, batch: Batch) -> Tensor:
        state = pick(batch.final, batch.anchors)
        state = F.rms_norm(state, state.shape[-1:], eps=EPS) / math.sqrt(2)  # the checkpoint's scale_input
        logits = []
        for j, (emb, proj, ln, head) in enumerate(zip(self.emb, self.proj, self.ln, self.head, strict=True), start=1):
            token = batch.tokens.gather(1, batch.anchors + j)
            state = F.gelu(ln(proj(state) + self.token_weight * emb(token)))
            logits.append(head(state))
        return torch.stack(logits)

    def adam_rate(self, recipe: Recipe) -> float:
        return recipe.mlp_rate


def start(recipe: Recipe, target: Target, own: tuple[Tensor, Tensor]) -> MLPSpeculator:
    """An untrained drafter."""
    drafter = MLPSpeculator(recipe)
    initialise(drafter, recipe.seed)
    return drafter
