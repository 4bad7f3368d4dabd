"""Standalone draft model: a Llama of one layer, which reads the tokens and nothing of the target.

Draft position j of anchor i is its prediction of x_{i+j+1} after reading all tokens up to x_{i+j}.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from speceval.zoo.llama import initialise
from speceval.zoo.recipe import Recipe
from speceval.zoo.target import Target
from speceval.zoo.training import Batch, Drafter, pick


def sizes(recipe: Recipe) -> Recipe:
    """The recipe of a target with the draft model's sizes."""
    return replace(
        recipe,
        layers=1,
        hidden_size=recipe.draft_model_size,
        heads=recipe.draft_model_heads,
        intermediate_size=recipe.draft_intermediate_size,
    )


class DraftModel(Drafter):
    """`state_dict` is the checkpoint, each name after "llama."."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.depth, self.draft_ids = recipe.max_k, torch.arange(recipe.vocab_size)
        self.llama = Target(sizes(recipe))

    def forward(self, batch: Batch) -> Tensor:
        model = self.llama.model
        state = model.norm(self.llama(batch.tokens)[1][-1])
        states = torch.stack([pick(state, batch.anchors + j) for j in range(1, self.depth + 1)])
        return self.llama.lm_head(states)


def start(recipe: Recipe, target: Target, own: tuple[Tensor, Tensor]) -> DraftModel:
    """An untrained drafter."""
    drafter = DraftModel(recipe)
    initialise(drafter, recipe.seed)
    return drafter
