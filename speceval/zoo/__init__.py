"""The embedded default: a tiny chat target and drafters for it, trained on this machine in about a minute.

Nothing is downloaded. `ensure` trains what is missing and returns checkpoint directories that vLLM loads as they are;
importing this package imports no torch.
"""

from __future__ import annotations

from speceval.zoo.build import ensure
from speceval.zoo.recipe import PLANS, Recipe

DRAFTERS: dict[str, str] = {name: architecture for name, (architecture, _) in PLANS.items()}
"""Drafter -> vLLM's `method`."""

MAX_K: int = Recipe().max_k
"""The number of draft positions that the drafters were trained for."""

__all__ = ["DRAFTERS", "MAX_K", "ensure"]
