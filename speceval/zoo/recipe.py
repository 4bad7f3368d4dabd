"""What the zoo consists of and every number that its training depends on. No torch here: this is imported early."""

from __future__ import annotations

from dataclasses import dataclass

TARGET = "target"

# Drafter -> (architecture, loss): keys of worker.ARCHITECTURES and losses.LOSSES. vLLM calls the method as we do the
# architecture. No other method's drafter may have "eagle3" in its name: vLLM looks for it in paths.
PLANS: dict[str, tuple[str, str]] = {
    "kl-eagle3": ("eagle3", "kl"),
    "lk-eagle3": ("eagle3", "lk_lambda"),
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
    draft_vocab_size: int = 384
    draft_intermediate_size: int = 128
    max_k: int = 5  # draft positions unrolled in training
    position_decay: float = 0.8  # weight of draft position j is decay ** (j - 1)
    warmup_steps: int = 100  # with KL, whatever the loss
    loss_steps: int = 200  # with the drafter's own loss
    draft_batch: int = 16
    anchors: int = 24  # of each row and batch
    draft_matrix_rate: float = 0.04
    draft_rate: float = 1e-2
