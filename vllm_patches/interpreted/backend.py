"""What the `triton` package lacks to be vLLM's Triton on a CPU: a backend's name, and two gaps of its interpreter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

TORCH_PATH = "vllm.v1.sample.ops.topk_topp_sampler"
"""Truncates by top-k and top-p with a Triton kernel that the interpreter cannot run (it calls methods of Python
numbers), or with torch where there is no Triton: it is told that there is none."""
DECIDES = "vllm.triton_utils.importing"
"""Decides once in a process whether vLLM has Triton."""


class Driver:
    """As much of a Triton driver as vLLM asks for."""

    @staticmethod
    def is_active() -> bool:
        return True


class Backend:
    """As much of a Triton backend as vLLM asks for."""

    driver = Driver
    compiler = None


def install() -> None:
    """Make Triton usable on a CPU in this process; again: nothing.

    Raises RuntimeError where vLLM has decided already that it has none, and ImportError without `triton`.
    """
    if installed():
        return
    # Where that module is the first to ask for the platform, this runs in the middle of its import, before it decides.
    if hasattr(sys.modules.get(DECIDES), "HAS_TRITON"):
        raise RuntimeError("vLLM has started without Triton in this process: its V2 runner needs another one")
    if "triton" in sys.modules and not _interprets():
        raise RuntimeError("Triton was imported to compile in this process: the V2 runner needs another one")
    from triton.backends import backends

    from vllm_patches.interpreted import launch

    backends.setdefault("cpu", Backend)
    mend_interpreter()
    launch.take_over()
    sys.meta_path.insert(0, AfterImport())


def installed() -> bool:
    """Whether `install` has run in this process."""
    return any(isinstance(finder, AfterImport) for finder in sys.meta_path)


def _interprets() -> bool:
    """Whether Triton's own functions were made for its interpreter: that is settled when it is imported."""
    standard: Any = importlib.import_module("triton.language.standard")
    return type(standard.cdiv).__name__ == "InterpretedFunction"


def mend_interpreter() -> None:
    """Masks that are integers, and libdevice's log1p, neither of which Triton's interpreter knows."""
    core: Any = importlib.import_module("triton.language.core")
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def as_bool(mask: Any, like: Any) -> Any:
        wide = np.broadcast_to(np.asarray(mask.data) != 0, np.asarray(like.data).shape)
        return interpreter.TensorHandle(np.ascontiguousarray(wide), core.int1)

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        return load(self, pointers, as_bool(mask, pointers), *rest)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        return store(self, pointers, value, as_bool(mask, pointers), *rest)

    def log1p(x: Any, _semantic: Any = None) -> Any:
        return core.tensor(interpreter.TensorHandle(np.log1p(x.handle.data), x.handle.dtype), x.type)

    builder.create_masked_load, builder.create_masked_store = create_masked_load, create_masked_store
    importlib.import_module("triton.language.extra.libdevice").log1p = log1p  # type: ignore[attr-defined]


class AfterImport(MetaPathFinder):
    """Tells `TORCH_PATH`, once it has been executed, that there is no Triton."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec with its loader extended; None for every other module."""
        if fullname != TORCH_PATH:
            return None
        specs = (f.find_spec(fullname, path, target) for f in sys.meta_path if f is not self)
        spec = next((s for s in specs if s is not None), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_tell(module: Any) -> None:
            execute(module)
            module.HAS_TRITON = False

        spec.loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec
