"""Drafting methods as the patches see them. Data and pure functions: imports neither torch nor vLLM."""

from __future__ import annotations

from typing import Any

from packaging.specifiers import SpecifierSet

DETERMINISTIC = ("ngram", "ngram_gpu", "suffix")
"""Methods that propose tokens without a distribution: q is one-hot whatever the temperature."""

V1_ONLY = ("suffix",)
"""Methods that the V2 runner has no drafter for (vllm/v1/worker/gpu/spec_decode/__init__.py)."""

XPRESS = ("Qwen3XPressModel", "DFlashQwen3XPressModel")
"""Architectures of drafters (vLLM serves them as method dflash) that take the argmax and never write q."""

TRANSPORT = "custom_class"
"""vLLM's `method` of a drafter that is a class of ours; its `model` is then the class's path."""

HEADS = {
    "medusa": ("vllm_patches.drafters.Medusa", ">=0.33"),
    "mlp_speculator": ("vllm_patches.drafters.MLPSpeculator", ""),
}
"""Drafting method -> its class of ours, and the versions of vLLM whose own V1 proposer is missing or broken ("": all).
The V2 runner has none for them in any version."""

HEADS_ON_V2 = ">=0.32"
"""Versions of vLLM whose V2 runner can have them (the ledger's `v2-heads`)."""


def ours(method: str, version: str, runner: str = "V1") -> bool:
    """Whether a drafter of this method is a class of ours on this version of vLLM (`drafters.engine_arguments`)."""
    if method not in HEADS:
        return False
    return runner == "V2" or SpecifierSet(HEADS[method][1]).contains(version, prereleases=True)


def has_class(speculative_config: Any) -> bool:
    """Whether the drafter of a resolved `vllm.config.SpeculativeConfig`, or of None, is a class of ours."""
    method, model = (getattr(speculative_config, name, None) for name in ("method", "model"))
    return method == TRANSPORT and any(model == path for path, _ in HEADS.values())


def transport(method: str, version: str | None, runner: str = "V1") -> str:
    """What vLLM calls a drafting method: TRANSPORT for a class of ours. `version` None: there is no vLLM."""
    return TRANSPORT if version is not None and ours(method, version, runner) else method


def own_name(method: str, model: str | None) -> str:
    """The drafting method behind vLLM's `method` and `model`: inverse of `transport`."""
    if method != TRANSPORT:
        return method
    return next((name for name, (path, _) in HEADS.items() if path == model), method)
