"""What vLLM made of a drafter's checkpoint: what must not be measured, and what a reader must know."""

from __future__ import annotations

from typing import Any

from speceval.errors import UserError
from vllm_patches.loading import SAME

MOST_NAMED = 8
"""Tensors that a line names."""


def check(report: dict[str, Any], drafter: str) -> None:
    """Raises `UserError` when the drafter uses parts that its checkpoint did not fill, or that cannot be meant."""
    if names := report["unfilled"]:
        raise UserError(
            f"{drafter}: its checkpoint lacks {_some(names)}: vLLM would draft with noise there: get the whole one"
        )
    if fault := report["wrong"]:
        raise UserError(f"{drafter}: {fault}")


def notes(report: dict[str, Any]) -> list[str]:
    """A line for what was decided while the drafter was loaded, and one for each thing that may surprise."""
    decided = report["decided"]
    if not decided:
        return []
    lines = [f"drafter as loaded: {', '.join(_words(decided))}"] if _words(decided) else []
    cosine = decided.get("embedding_cosine")
    if cosine is not None and cosine < SAME:
        lines.append(f"the drafter brings its own embedding, unlike the target's (cosine {cosine:.2f})")
    if decided.get("auxiliary_layers_named") is False:
        layers = ", ".join(map(str, decided["auxiliary_layers"]))
        lines.append(f"the drafter's config.json names no auxiliary layers: vLLM took its default, {layers}")
    if names := report["unused"]:
        lines.append(f"the drafter's checkpoint has biases that vLLM's model has not, left out: {_some(names)}")
    if not report["seen"]:
        lines.append("which tensors of the drafter its checkpoint filled could not be seen with this way of loading")
    return lines


def _words(decided: dict[str, Any]) -> list[str]:
    words = [f"{what} {decided[what]}" for what in ("embedding", "head") if what in decided]
    for name, value in decided.items():
        if name.removesuffix("_cosine") in ("embedding", "head", "drafter") or name == "auxiliary_layers_named":
            continue
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        words.append(f"{name.replace('_', ' ')} {text}")
    return words


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
