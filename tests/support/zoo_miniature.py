"""A zoo that trains in a second."""

from __future__ import annotations

from speceval.zoo.recipe import Recipe

MINIATURE = Recipe(
    vocab_size=300,
    function_limit=300,
    word_problems=40,
    hidden_size=16,
    intermediate_size=24,
    heads=2,
    target_steps=6,
    target_threads=1,
    target_batch=2,
    target_length=32,
    rows=8,
    row_length=40,
    draft_vocab_size=64,
    draft_intermediate_size=16,
    draft_heads=4,
    max_k=3,
    draft_model_size=8,
    draft_model_heads=1,
    mlp_size=24,
    latent_size=4,
    warmup_steps=2,
    loss_steps=3,
    draft_batch=2,
    anchors=8,
)
