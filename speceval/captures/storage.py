"""How states lie in a capture's shards: as they are, rounded, or as eight bits with a scale for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16", "float8"]
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}
SCALE = ".scale"
"""Ending of the tensor that holds the scales of another one's rows."""
LARGEST = 448.0
"""Of float8: four bits of exponent, three of fraction, no infinity (arXiv 2209.05433)."""


def bytes_of_row(size: int, dtype: Dtype) -> int:
    """Of `size` numbers."""
    return size * BYTES[dtype] + (4 if dtype == "float8" else 0)


def pack(name: str, state: torch.Tensor, dtype: Dtype) -> dict[str, torch.Tensor]:
    """The tensors of a state [rows, size] in a shard, by name."""
    import torch

    if dtype != "float8":
        return {name: state.to(getattr(torch, dtype))}
    largest = state.float().abs().amax(-1)
    scale = torch.where(largest > 0, largest / LARGEST, 1.0)
    return {name: (state.float() / scale[:, None]).to(torch.float8_e4m3fn), name + SCALE: scale}


def unpack(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The states of `pack`ed tensors, by name; what has a scale in float32, the others as they lie."""
    return {
        name: stored[name].float() * stored[name + SCALE][:, None] if name + SCALE in stored else stored[name]
        for name in stored
        if not name.endswith(SCALE)
    }
