"""Applies the ledger: at once where a module is loaded, else right after vLLM imports it.

vLLM calls `register` early in every process (frontend, engine core, workers), before the patched modules are
imported; importing them there would break forked workers, so an import hook waits for them.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from vllm_patches.guard import HOOKS, hook, misfit
from vllm_patches.ledger import LEDGER, Patch
from vllm_patches.state import MARK, NOT_APPLIED, REFUSED, judge, switched_off, vllm_version

logger = logging.getLogger("vllm.vllm_patches")  # below vLLM's logger, so that its handlers print us


def register() -> None:
    """Entry point of the vLLM plugin: idempotent in a process, and never raises (`state.status` tells)."""
    if off := switched_off():
        logger.info("vllm_patches: switched off (%s)", off)
        return
    if not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterImport())
    for patch in LEDGER:
        apply(patch)
    for name in HOOKS:
        if name in sys.modules:
            hook(sys.modules[name])


def apply(patch: Patch) -> None:
    """Put the replacement in place if the row fits what is loaded here; one log line says what was done."""
    state, reason = judge(patch)
    if state == REFUSED:
        # What vLLM's files show already, the guard tells once, and only to the engines that need the row. The rest is
        # seen here alone (another plugin holds the symbol, say).
        level = logging.DEBUG if misfit(patch) else logging.INFO if patch.methods else logging.ERROR
        logger.log(level, "vllm_patches: %s refused: %s", patch.id, reason)
    if state != NOT_APPLIED:
        return
    try:
        swap(patch)
    except Exception:  # vLLM may not need the patch for what it is about to do: status() tells those who do
        logger.exception("vllm_patches: %s could not be applied", patch.id)
    else:
        logger.debug("vllm_patches: %s active in vLLM %s: replaced %s", patch.id, vllm_version(), patch.target)


def swap(patch: Patch) -> None:
    """Replace the live symbol and mark the replacement with the row's id."""
    *path, name = patch.symbol.split(".")
    owner = sys.modules[patch.module]
    for part in path:
        owner = getattr(owner, part)
    replacement = importlib.import_module(patch.replacement).replace(getattr(owner, name))
    setattr(replacement, MARK, patch.id)
    setattr(owner, name, replacement)


class AfterImport(MetaPathFinder):
    """Lets the other finders find a patched module and applies its rows once it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module in the ledger or HOOKS with its loader extended; None for every other module."""
        rows = [patch for patch in LEDGER if patch.module == fullname]
        if not rows and fullname not in HOOKS:
            return None
        specs = (f.find_spec(fullname, path, target) for f in sys.meta_path if f is not self)
        spec = next((s for s in specs if s is not None), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            for patch in rows:
                apply(patch)
            if fullname in HOOKS:
                hook(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec
