"""MEDUSA (arXiv 2401.10774): a head for each draft position, all on the target's last hidden state.

With h_i the target's normed last state at token i, head j predicts x_{i+j+1} from h_i alone: it knows none of the
tokens from x_{i+1} on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speceval.zoo.llama import initialise
from speceval.zoo.recipe import Recipe
from speceval.zoo.target import Target
from speceval.zoo.training import Batch, Drafter, pick


class Block(nn.Module):
    """One residual block: x + silu(W x)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(hidden, hidden, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.layers[0](x))


class Medusa(Drafter):
    """`state_dict` is the checkpoint."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.depth, self.draft_ids = recipe.draft_heads, torch.arange(recipe.vocab_size)
        self.blocks = nn.ModuleList(Block(recipe.hidden_size) for _ in range(self.depth))
        self.lm_heads = nn.ModuleList(
            nn.Linear(recipe.hidden_size, recipe.vocab_size, bias=False) for _ in range(self.depth)
        )

    def forward(self, batch: Batch) -> Tensor:
        state = pick(batch.final, batch.anchors)
        return torch.stack([head(block(state)) for block, head in zip(self.blocks, self.lm_heads, strict=True)])


def start(recipe: Recipe, target: Target, own: tuple[Tensor, Tensor]) -> Medusa:
    """An untrained drafter; each head's output map starts as the target's."""
    drafter = Medusa(recipe)
    initialise(drafter, recipe.seed)
    with torch.no_grad():
        for head in drafter.lm_heads:
            head.weight.copy_(target.lm_head.weight)
    return drafter
