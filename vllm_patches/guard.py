"""Stops an engine before it starts, or a request before it runs, when its sampling is known to be wrong.

Where nothing is known (another version of vLLM, a source that no row of the ledger was written for), a plain vLLM
starts as it is with one warning; only an engine that is to be measured is stopped (`refuse.MEASURED_SWITCH`).

Two functions of vLLM are wrapped in the frontend process, where an error reaches the user as one line (a third, in
the workers, only listens: `loading`):
`EngineArgs.create_engine_config` (vllm/engine/arg_utils.py), which every engine passes through, and
`InputProcessor._validate_params` (vllm/v1/engine/input_processor.py), which sees every request. Both are only called
and never changed, so their source may differ from version to version.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from vllm_patches.ledger import LEDGER, Patch
from vllm_patches.loading import watch
from vllm_patches.methods import own_name
from vllm_patches.refuse import MEASURED_SWITCH, check, check_config, unrecordable
from vllm_patches.source_text import text_of
from vllm_patches.state import NATIVE, NOT_LOADED, OFF, REFUSED, SWITCH, digest, judge, needed, vllm_version
from vllm_patches.versions import REQUIREMENT, unsupported, within

logger = logging.getLogger("vllm.vllm_patches")

WARNED = "SPECEVAL_PATCHES_WARNED"
"""Environment variable that holds the last warning: processes that vLLM starts afterwards need not repeat it."""


def hook(module: ModuleType) -> None:
    """Wrap what is guarded in `module`, one of HOOKS, once."""
    owner_name, name, wrapper = HOOKS[module.__name__]
    owner = getattr(module, owner_name, None)
    original = getattr(owner, name, None)
    if original is None:
        warn(unknown_version() or f"vLLM {vllm_version()} has no {owner_name}.{name} to guard")
    elif not hasattr(original, "__vllm_guard__"):
        guarded = wraps(original)(wrapper(original))
        guarded.__vllm_guard__ = True  # type: ignore[attr-defined]
        setattr(owner, name, guarded)


def guard_engine(original: Callable[..., Any]) -> Callable[..., Any]:
    """`EngineArgs.create_engine_config` that lets `examine` see the config of an engine with speculative decoding."""

    def create_engine_config(*args: Any, **kwargs: Any) -> Any:
        config = original(*args, **kwargs)
        if getattr(config, "speculative_config", None) is not None:
            examine(config)
        return config

    return create_engine_config


def guard_request(original: Callable[..., Any]) -> Callable[..., Any]:
    """`InputProcessor._validate_params` that raises ValueError for structured outputs which would be biased."""

    def validate_params(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        grammar = getattr(params, "structured_outputs", None) is not None
        known = unsupported(vllm_version()) is None
        if grammar and known and self.vllm_config.speculative_config is not None and grammar_rows_doubted():
            speculative = self.vllm_config.speculative_config
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
    "vllm.model_executor.model_loader.default_loader": ("DefaultModelLoader", "load_weights", watch),
}
"""Module -> class, method and what wraps it."""


def examine(config: Any) -> None:
    """One line about a speculative engine with this resolved VllmConfig: ValueError, a warning, or what is patched."""
    if reason := refusal(config):
        raise ValueError(f"{reason} ({SWITCH}=0 starts vLLM as it is)")
    if doubt := unknown_version() or left_out(config):
        warn(doubt)
    else:
        logger.info("vllm_patches: %s", summary(config))


def refusal(config: Any) -> str | None:
    """Why an engine with this resolved VllmConfig must not start; None if it may.

    Its settings are known to be wrong and no patch makes them right (`refuse`). An engine that is to be measured must
    also be of a supported version, and each patch that it needs must fit this vLLM's source.
    """
    installed, measured = vllm_version(), os.environ.get(MEASURED_SWITCH) == "1"
    if reason := unsupported(installed):
        return reason if measured else None
    if reason := check_config(config, str(installed)):
        return reason
    if measured and (reason := unrecordable(config)):
        return reason
    if measured and (rows := unfit(config)):
        name, reason = next(iter(rows.items()))
        return f"sampled drafts need the patch {name}, which does not fit: {reason}"
    return None


def unknown_version() -> str | None:
    """What a plain vLLM of a version that is not supported is warned of; None if it is supported."""
    if unsupported(vllm_version()) is None:
        return None
    return f"vLLM {vllm_version()} is not known to the patches ({REQUIREMENT} is): nothing is patched"


def left_out(config: Any) -> str | None:
    """What a plain vLLM is warned of when patches that this engine needs do not fit; None if all do."""
    rows = unfit(config)
    if not rows:
        return None
    names, first = ", ".join(rows), next(iter(rows.values()))
    return f"what these patches repair stays as in stock vLLM, for they do not fit: {names} ({first})"


def warn(line: str) -> None:
    """One warning in vLLM's log that says how to silence it; not again in this process or in those it starts."""
    if os.environ.get(WARNED) != line:
        os.environ[WARNED] = line
        logger.warning("vllm_patches: %s (%s=0 silences this)", line, SWITCH)


def unfit(config: Any) -> dict[str, str]:
    """Id and reason of each patch that this engine needs and that does not fit this vLLM's source."""
    return {patch.id: reason for patch in needs(config) if (reason := doubt(patch))}


def grammar_rows_doubted() -> bool:
    """Whether one of the rows that make structured outputs right on the V2 runner does not fit this vLLM's source."""
    return any(doubt(patch) for patch in LEDGER if patch.grammar)


def doubt(patch: Patch) -> str:
    """Why a row does not fit this vLLM's source; empty if it does, or is switched off."""
    state, reason = judge(patch)
    if state == NOT_LOADED:
        return misfit(patch)
    return reason if state == REFUSED else ""


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
    if not within(patch.versions, installed):
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
    place = Path(next(iter(spec.submodule_search_locations))).joinpath(*patch.module.split(".")[1:])
    file = next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists()), None)
    return None if file is None else text_of(file.read_text(encoding="utf-8"), patch.symbol)
