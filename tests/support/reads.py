"""Who waits for the device: a host that reads a tensor's values, or makes a tensor there that it does not leave to
itself. On a CPU such a read costs nothing and is not seen: hence these two modes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

READS = {"item", "tolist", "numpy", "cpu", "nonzero", "unique", "masked_select", "equal", "allclose"} | {
    f"__{name}__" for name in ("bool", "int", "float", "index", "array", "contains")
}
"""What a host has a tensor's values with."""
OURS = Path(__file__).resolve().parents[2] / "vllm_patches"
DEVICE = OURS / "interpreted"
"""Stands for the device: what it does with tensors are the kernels."""


def waits(function: Any, args: Any, kwargs: dict[str, Any]) -> str:
    """What of this call of torch's the host waits for; empty if for nothing. As if every tensor were on a device."""
    name = getattr(function, "__name__", "")
    if not args or not isinstance(args[0], torch.Tensor):
        return ""
    if name in READS:
        return name
    if name in ("__getitem__", "__setitem__") and any(_is_mask(index) for index in _indices(args[1])):
        return f"{name} by a mask"
    if name == "repeat_interleave" and torch.is_tensor([*args, None][1]) and kwargs.get("output_size") is None:
        return "repeat_interleave of a length that is not told"
    return ""


def _indices(index: Any) -> Any:
    return index if isinstance(index, tuple) else (index,)


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


class NobodyWaits(TorchFunctionMode):
    """Raises where the host would wait for the device "meta": reads a value, or makes a tensor there at once."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if waits(function, args, kwargs) and args[0].device.type == "meta":
            raise AssertionError(f"the host waits: {waits(function, args, kwargs)}")
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "meta":
            raise AssertionError("the host waits until a tensor is there")
        return function(*args, **kwargs)


class Watch(TorchFunctionMode):
    """Keeps where code of `vllm_patches` waits in a live engine, on whatever device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (what := waits(function, args, kwargs)) and (where := self._caller()):
            self.seen.add(f"{where}: {what}")
        return function(*args, **kwargs)

    @staticmethod
    def _caller() -> str:
        """Whose code it was, if it is ours: module and function."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and Path(frame.f_code.co_filename).is_relative_to(Path(torch.__file__).parent):
            frame = frame.f_back
        path = Path(frame.f_code.co_filename) if frame is not None else Path()
        if frame is None or not path.is_relative_to(OURS) or path.is_relative_to(DEVICE):
            return ""
        return f"{path.relative_to(OURS)} {frame.f_code.co_name}"
