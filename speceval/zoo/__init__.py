"""The embedded default: a tiny chat target and drafters for it, trained on this machine in half a minute each.

Nothing is downloaded. `ensure` trains what is missing and returns checkpoint directories that vLLM loads as they are;
importing this package imports no torch.
"""

from __future__ import annotations

from speceval.zoo.build import built, ensure
from speceval.zoo.recipe import METHODS, PLANS, trained_k

DRAFTERS: dict[str, str] = {name: METHODS[architecture] for name, (architecture, _) in PLANS.items()}
"""Drafter -> vLLM's `method`."""

DEFAULT_K: dict[str, int] = {name: trained_k(architecture) for name, (architecture, _) in PLANS.items()}
"""Drafter -> the number of draft positions that it was trained for."""

MAX_K: dict[str, int | None] = {
    name: trained_k(architecture) if architecture in ("medusa", "mlp") else None
    for name, (architecture, _) in PLANS.items()
}
"""Drafter -> the most tokens that it can draft a step: its heads; None: there is no end."""

__all__ = ["DEFAULT_K", "DRAFTERS", "MAX_K", "built", "ensure"]
