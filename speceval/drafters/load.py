"""From a drafter's checkpoint to something that drafts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speceval.drafters.base import Loaded
from speceval.drafters.eagle import Eagle
from speceval.drafters.eagle3 import Eagle3
from speceval.drafters.heads import Medusa, MLPSpeculator
from speceval.drafters.models import LanguageModel
from speceval.drafters.mtp import MTP
from speceval.errors import UserError

KINDS: dict[str, Callable[[dict[str, Any], dict[str, Tensor], int], Loaded]] = {
    "eagle": Eagle,
    "eagle3": Eagle3,
    "mtp": MTP,
    "medusa": Medusa,
    "mlp_speculator": MLPSpeculator,
}
"""Drafting method -> what computes it here."""

WITHOUT_CHECKPOINT = ("ngram",)
SUPPORTED = (*KINDS, "draft_model", *WITHOUT_CHECKPOINT)


def require(method: str, name: str) -> None:
    """Raises `UserError` for a method that is not computed here."""
    if method not in SUPPORTED:
        raise UserError(
            f"--draft {name}: {method} is not computed without vLLM, {', '.join(SUPPORTED)} are: measure it with "
            "`speceval run --replay`"
        )


def load(method: str, directory: Path, k: int, layers: int | None, device: str = "cpu") -> Any:
    """The drafter in `directory`, computing in float32. `layers`: how many its target has.

    Raises `UserError` for a checkpoint that is damaged or asks for what is not computed here.
    """
    if method == "draft_model":
        return LanguageModel(directory, k, device)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    try:
        loaded = KINDS[method](config, _tensors(directory, device), k)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"no {error} in its config.json: the checkpoint is not complete") from None
    if isinstance(loaded, Eagle3) and not loaded.layers:
        loaded.layers = loaded.default_layers(layers or 0)
    return loaded


def _tensors(directory: Path, device: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path, device=device)
    for path in sorted(directory.glob("*.bin")) if not found else []:
        found |= torch.load(path, map_location=device, weights_only=True)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
