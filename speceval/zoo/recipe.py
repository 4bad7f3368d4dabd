"""What the zoo consists of and every number that its training depends on. No torch here: this is imported early."""

from __future__ import annotations

from dataclasses import dataclass

TARGET = "target"

METHODS = {"eagle3": "eagle3", "medusa": "medusa", "mlp": "mlp_speculator", "mtp": "mtp", "draft": "draft_model"}
"""Architecture (key of worker.ARCHITECTURES) -> vLLM's `method`."""

LOSSES = {"kl": "kl", "tv": "tv", "lk-alpha": "lk_alpha", "lk": "lk_lambda"}
"""First part of a drafter's name -> its loss (key of losses.LOSSES)."""

FROM_SCRATCH = ("tv",)
"""Losses without KL warm-up, to show what it is for."""

# Drafter -> (architecture, loss). No other architecture may have "eagle3" in its name: vLLM looks for it in paths.
PLANS: dict[str, tuple[str, str]] = {
    f"{prefix}-{architecture}": (architecture, loss) for architecture in METHODS for prefix, loss in LOSSES.items()
}


@dataclass(frozen=True)
class Recipe:
    """Sizes, steps, rates and seed of one zoo. Two equal recipes give equal bytes on one machine."""

    seed: int = 0
    # Text: packed chat documents in a small byte-level BPE vocabulary.
    vocab_size: int = 512
    function_limit: int = 250  # characters of the longest function taken from the standard library
    word_problems: int = 1500
    # Target: a Llama.
    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 3
    target_steps: int = 440
    target_threads: int = 2  # part of the recipe: sums in another order are other bytes
    target_batch: int = 8
    target_length: int = 160
    target_matrix_rate: float = 0.015
    target_rate: float = 6e-3
    # The target's own text, from which the drafters learn.
    rows: int = 768
    row_length: int = 112
    # Drafters.
    draft_vocab_size: int = 384  # EAGLE-3's; the others draft every token
    draft_intermediate_size: int = 128
    draft_heads: int = 6  # of MEDUSA and of the MLP speculator, which draft one token a head
    max_k: int = 5  # draft positions of the others in training
    draft_model_size: int = 64  # hidden size of the standalone draft model
    draft_model_heads: int = 2
    mlp_size: int = 96  # of the MLP speculator's state
    latent_size: int = 16  # rank of the MTP layer's keys and values
    position_decay: float = 0.8  # weight of draft position j is decay ** (j - 1)
    warmup_steps: int = 100  # with KL, whatever the loss
    loss_steps: int = 200  # with the drafter's own loss
    draft_batch: int = 16
    anchors: int = 24  # of each row and batch
    draft_matrix_rate: float = 0.04
    draft_rate: float = 1e-2
    mlp_rate: float = 4e-2  # the MLP speculator's: its embeddings are Adam's too, and start from nothing


def trained_k(architecture: str, recipe: Recipe | None = None) -> int:
    """The number of draft positions that an architecture's drafters are trained for."""
    recipe = recipe or Recipe()
    return recipe.draft_heads if architecture in ("medusa", "mlp") else recipe.max_k
