"""From a drafter's checkpoint to something that drafts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from speceval.drafters import ngram, suffix
from speceval.drafters.base import Loaded, States
from speceval.drafters.eagle import Eagle
from speceval.drafters.eagle3 import Eagle3
from speceval.drafters.heads import Medusa, MLPSpeculator
from speceval.drafters.models import LanguageModel
from speceval.drafters.mtp import MTP
from speceval.errors import UserError
from speceval.foreign import json_object

KINDS: dict[str, Callable[[dict[str, Any], dict[str, Tensor], int], Loaded]] = {
    "eagle": Eagle,
    "eagle3": Eagle3,
    "mtp": MTP,
    "medusa": Medusa,
    "mlp_speculator": MLPSpeculator,
}
"""Drafting method -> what computes it here."""

ARGUMENTS = {"ngram": tuple(ngram.ARGUMENTS), "suffix": tuple(suffix.ARGUMENTS)}
"""Methods without a checkpoint, and the keys of vLLM's speculative_config that they read."""
SUPPORTED = (*KINDS, "draft_model", *ARGUMENTS)


def require(method: str, name: str) -> None:
    """Raises `UserError` for a method that is not computed here, or whose package is missing."""
    if method == "suffix":
        suffix.require()
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
        _tensors(directory, device)
        return LanguageModel(directory, k, device)
    config = json_object(directory / "config.json")
    try:
        loaded = KINDS[method](config, _tensors(directory, device), k)
    except KeyError as error:
        raise UserError(f"no {error} in its config.json: the checkpoint is not complete") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"its config.json and its tensors are not of one model ({_first(error)})") from None
    if isinstance(loaded, Eagle3) and not loaded.layers:
        loaded.layers = loaded.default_layers(layers or 0)
    return loaded


def try_out(drafter: Any, hidden_size: int, vocabulary: int, device: str = "cpu") -> None:
    """Draft once from nothing. Raises `UserError` where tensors do not fit the target, and for one that is not read:
    with it the drafter is another than what is computed here.
    """
    states = torch.zeros(1, 4, hidden_size, device=device)
    rows = torch.zeros(1, hidden_size, device=device).expand(vocabulary, hidden_size)
    given = States(states, dict.fromkeys(drafter.layers, states), SimpleNamespace(embedding=rows, output=rows))
    tokens, places = (torch.zeros(1, count, dtype=torch.long, device=device) for count in (4, 1))
    try:
        with torch.no_grad():
            widths = {logits.shape[-1] for logits in drafter(tokens, given, places)}
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"its tensors do not fit its config.json or the target ({_first(error)})") from None
    wanted = vocabulary if drafter.draft_ids is None else len(drafter.draft_ids)
    if drafter.draft_ids is None and widths and min(widths) > vocabulary:
        wanted = min(widths)  # rows beyond the vocabulary are padding
    if widths - {wanted}:
        raise UserError(f"its output map has {min(widths - {wanted}):,} rows, for {wanted:,} tokens")
    if isinstance(drafter, Loaded) and (left := drafter.unread()):
        raise UserError(f"its tensor {left[0]} is none that is computed with here: measure it with `run --replay`")


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _tensors(directory: Path, device: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint. Raises `UserError` for files that are damaged, and for numbers that are none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    files = sorted(directory.glob("*.safetensors"))
    for path in files or sorted(directory.glob("*.bin")):
        try:
            content = load_file(path, device=device) if files else torch.load(path, device, weights_only=True)
            twice = found.keys() & content.keys()
        except (SafetensorError, OSError, RuntimeError, ValueError, AttributeError, UnpicklingError) as error:
            raise UserError(f"{path}: no file of tensors ({_first(error)})") from None
        if twice:
            raise UserError(f"tensor {min(twice)} stands in {path.name} and in a file before it: which one counts?")
        found |= content
    for name, tensor in found.items():
        if tensor.is_floating_point() and tensor.element_size() == 1:
            raise UserError(f"tensor {name} is {tensor.dtype}: quantised weights are measured with `run --replay`")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"tensor {name} holds NaN or infinity")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
