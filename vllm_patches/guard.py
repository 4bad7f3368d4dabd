"""Stops an engine before it starts, or a request before it runs, when nothing here makes its sampling right.

Two functions of vLLM are wrapped in the frontend process, where an error reaches the user as one line:
`EngineArgs.create_engine_config` (vllm/engine/arg_utils.py), which every engine passes through, and
`InputProcessor._validate_params` (vllm/v1/engine/input_processor.py), which sees every request. Both are only called
and never changed, so their source may differ from version to version.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.specifiers import SpecifierSet

from vllm_patches.ledger import LEDGER, Patch
from vllm_patches.methods import own_name
from vllm_patches.refuse import check, check_config
from vllm_patches.state import NATIVE, NOT_LOADED, OFF, REFUSED, SWITCH, digest, judge, needed, vllm_version

logger = logging.getLogger("vllm.vllm_patches")


def hook(module: ModuleType) -> None:
    """Wrap what is guarded in `module`, one of HOOKS, once."""
    owner_name, name, wrapper = HOOKS[module.__name__]
    owner = getattr(module, owner_name, None)
    original = getattr(owner, name, None)
    if original is None:
        logger.error("vllm_patches: vLLM %s has no %s.%s to guard", vllm_version(), owner_name, name)
    elif not hasattr(original, "__vllm_guard__"):
        guarded = wraps(original)(wrapper(original))
        guarded.__vllm_guard__ = True  # type: ignore[attr-defined]
        setattr(owner, name, guarded)


def guard_engine(original: Callable[..., Any]) -> Callable[..., Any]:
    """`EngineArgs.create_engine_config` that raises ValueError for an engine which `refusal` names."""

    def create_engine_config(*args: Any, **kwargs: Any) -> Any:
        config = original(*args, **kwargs)
        if config.speculative_config is not None:
            if reason := refusal(config):
                raise ValueError(f"{reason} ({SWITCH}=0 starts vLLM as it is)")
            logger.info("vllm_patches: %s", summary(config))
        return config

    return create_engine_config


def guard_request(original: Callable[..., Any]) -> Callable[..., Any]:
    """`InputProcessor._validate_params` that raises ValueError for structured outputs which would be biased."""

    def validate_params(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        speculative = self.vllm_config.speculative_config
        if speculative is not None and getattr(params, "structured_outputs", None) is not None:
            reason = check(
                str(vllm_version()),
                runner_of(self.vllm_config),
                {"method": speculative.method, "draft_sample_method": speculative.draft_sample_method},
                temperature=params.temperature,
                structured_outputs=True,
            )
            if reason:
                raise ValueError(reason)
        return original(self, params, *args, **kwargs)

    return validate_params


HOOKS: dict[str, tuple[str, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "vllm.engine.arg_utils": ("EngineArgs", "create_engine_config", guard_engine),
    "vllm.v1.engine.input_processor": ("InputProcessor", "_validate_params", guard_request),
}
"""Module -> class, method and what wraps it."""


def refusal(config: Any) -> str | None:
    """Why an engine with this resolved VllmConfig must not sample; None if it may.

    Either no patch makes its settings right (`refuse`), or a patch that it needs does not fit this vLLM's source.
    """
    if reason := check_config(config, str(vllm_version())):
        return reason
    for patch in needs(config):
        state, reason = judge(patch)
        if state == NOT_LOADED:
            reason = misfit(patch)
        elif state != REFUSED:
            continue
        if reason:
            return f"sampled drafts need the patch {patch.id}, which does not fit: {reason}"
    return None


def summary(config: Any) -> str:
    """One line for the log: what is done to this engine."""
    rows = [(patch.id, judge(patch)[0]) for patch in needs(config)]
    patched = ", ".join(name for name, state in rows if state not in (NATIVE, OFF)) or "nothing"
    left = "".join(f"; {name} {state}" for name, state in rows if state in (NATIVE, OFF))
    method = own_name(config.speculative_config.method, getattr(config.speculative_config, "model", None))
    return (
        f"vLLM {vllm_version()}, {runner_of(config)} runner, {method}: "
        f"patches {patched}{left} ({SWITCH}=0 turns this off)"
    )


def needs(config: Any) -> list[Patch]:
    """The ledger's rows that an engine needs once a request samples."""
    device, method = config.device_config.device_type, config.speculative_config.method
    return [patch for patch in LEDGER if needed(patch, device, 1.0, method, runner_of(config))]


def runner_of(config: Any) -> str:
    """The model runner of a resolved VllmConfig, "V1" or "V2"."""
    return "V2" if config.use_v2_model_runner else "V1"


def misfit(patch: Patch) -> str:
    """Why the source on disk is not what the row was written for; empty if it is. Imports nothing of vLLM."""
    installed = str(vllm_version())
    if not SpecifierSet(patch.versions).contains(installed, prereleases=True):
        return f"vLLM {installed} is outside {patch.versions}"
    text = symbol_source(patch)
    if text is None:
        return f"vLLM {installed} has no {patch.target}"
    if digest(text) not in patch.sources.values():
        return f"{patch.target} of vLLM {installed} has an unknown source (hash {digest(text)})"
    return ""


def symbol_source(patch: Patch) -> str | None:
    """Source text of a row's symbol, decorators included, read from vLLM's files as `inspect.getsource` gives it."""
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(next(iter(spec.submodule_search_locations))).joinpath(*patch.module.split(".")[1:]).with_suffix(".py")
    if not file.exists():
        return None
    text = file.read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for name in patch.symbol.split("."):
        node = next((child for child in node.body if getattr(child, "name", None) == name), None)
        if node is None:
            return None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno])
