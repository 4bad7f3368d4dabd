"""Launches the kernels of vLLM's V2 runner in lockstep (`simt`), and counts what they do.

`take_over` stands in for `triton.jit` before vLLM defines its kernels. Their text stays vLLM's; the one change is that
blocks of the vocabulary are cut to the vocabulary (`narrower`). What lockstep cannot execute goes through Triton's own
interpreter and is counted as such.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import triton
import triton.language as language

from vllm_patches.interpreted import CHECK, TRITON, simt, wanted

logger = logging.getLogger("vllm.vllm_patches.interpreted")

KERNELS = "vllm.v1.worker.gpu."
"""Beginning of the modules whose kernels are executed here; all others stay Triton's."""
BLOCKS = ("BLOCK_SIZE", "VOCAB_BLOCK_SIZE")
"""Names that vLLM's kernels give to the width of a block of the vocabulary."""
NARROWEST = 16
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
"""Triton's short names of data types, as `simt` has them."""


@dataclass
class Record:
    """What the kernels of this process have done."""

    launches: Counter[str] = field(default_factory=Counter)
    """By kernel."""
    fallen_back: dict[str, str] = field(default_factory=dict)
    """Kernels that lockstep could not execute, and why."""
    differences: list[str] = field(default_factory=list)
    """Tensors that lockstep and Triton's interpreter left differently (CHECK)."""

    def plain(self) -> dict[str, Any]:
        """As data that processes can send: also `strays`, the accesses outside a tensor."""
        return {
            "launches": dict(self.launches),
            "fallen_back": dict(self.fallen_back),
            "differences": list(self.differences),
            "strays": simt.machine.strays,
        }


RECORD = Record()


def take_over() -> None:
    """Have `triton.jit` make an `Interpreted` of each kernel of the V2 runner from now on."""
    simt.know_addresses()
    jit, mode = triton.jit, wanted()

    def interpreted_jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return lambda given: interpreted_jit(given, **options)
        kernel = jit(function, **options)
        ours = function.__module__.startswith(KERNELS) and mode != TRITON
        return Interpreted(function, kernel, mode == CHECK) if ours else kernel

    triton.jit = interpreted_jit


class Interpreted(simt.Kernel):
    """A kernel in both forms: to be launched, or called by another one, in lockstep or by Triton's interpreter."""

    in_lockstep = 0
    """Launches in progress that run in lockstep: a kernel called by one runs so, too."""

    def __init__(self, function: Callable[..., Any], triton_kernel: Any, check: bool = False) -> None:
        super().__init__(function)
        self.fn = function
        self.triton_kernel = triton_kernel
        self.check = check
        self.__module__, self.__qualname__, self.__doc__ = function.__module__, function.__qualname__, function.__doc__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "triton_kernel":
            raise AttributeError(name)
        return getattr(self.triton_kernel, name)

    def names(self) -> dict[str, Any]:
        """The kernel's module, in the terms of `simt`."""
        return {name: translate(item) for name, item in super().names().items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As one kernel calls another."""
        if not Interpreted.in_lockstep:
            return self.triton_kernel(*args, **kwargs)
        return super().__call__(*map(translate, args), **{name: translate(item) for name, item in kwargs.items()})

    def run(self, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        """Triton's other way to launch."""
        return self[grid](*args, **kwargs)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launch(grid, args, kwargs | self.narrower(args, kwargs))

    def narrower(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
        """Blocks of the vocabulary no wider than it is: 8192 entries for 24 tokens are 256 times the work."""
        given = {name: value for name, value in kwargs.items() if name in self.arg_names}
        vocabulary = self.signature.bind_partial(*args, **given).arguments.get("vocab_size")
        if vocabulary is None:
            return {}
        width = max(1 << (int(vocabulary) - 1).bit_length(), NARROWEST)
        return {name: width for name in BLOCKS if kwargs.get(name, 0) > width}

    def launch(self, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run all programs of a grid, in lockstep if that can be."""
        name = self.__name__
        RECORD.launches[name] += 1
        if name in RECORD.fallen_back:
            self.triton_kernel[grid](*args, **kwargs)
            return
        tensors = [item for item in (*args, *kwargs.values()) if hasattr(item, "untyped_storage")] if self.check else []
        before = [tensor.clone() for tensor in tensors]
        try:
            self._in_lockstep(grid, args, kwargs)
        except Exception as error:  # whatever of Triton's language it does not know
            RECORD.fallen_back[name] = f"{type(error).__name__}: {error}"
            logger.warning("%s runs in Triton's interpreter, which is slow: %s", name, RECORD.fallen_back[name])
            simt.machine.take_back()
            self.triton_kernel[grid](*args, **kwargs)
            return
        if self.check:
            after = [tensor.clone() for tensor in tensors]
            _restore(tensors, before)
            self.triton_kernel[grid](*args, **kwargs)
            RECORD.differences += compare(name, after, tensors)

    def _in_lockstep(self, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        Interpreted.in_lockstep += 1
        try:
            super().__getitem__(grid)(*args, **kwargs)
        finally:
            Interpreted.in_lockstep -= 1


def compare(kernel: str, ours: list[Any], theirs: list[Any]) -> list[str]:
    """One line for each tensor of which two executions made something else; NaN equals NaN."""
    lines = []
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        same = (a == b) | ((a != a) & (b != b))
        if not bool(same.all()):
            gap = float((a.double() - b.double()).abs()[~same].max())
            lines.append(
                f"{kernel}: tensor {number} {tuple(a.shape)} differs at {int((~same).sum())} places by {gap:g}"
            )
    return lines


def _restore(tensors: list[Any], before: list[Any]) -> None:
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(old)


def translate(item: Any) -> Any:
    """What a kernel's module or caller calls by Triton's names, as `simt` has it."""
    if item is language:
        return simt.tl
    if item is triton:
        return simt.triton
    if getattr(item, "__name__", "") == "triton.language.extra.libdevice":
        return simt.tldevice
    if isinstance(item, language.constexpr):
        return translate(item.value)
    if isinstance(item, language.dtype):
        return getattr(simt.tl, DTYPES.get(item.name, item.name))
    return item
