"""Drafting methods as the patches see them. Data and pure functions: imports neither torch nor vLLM."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

DETERMINISTIC = ("ngram", "ngram_gpu", "suffix")
"""Methods that propose tokens without a distribution: q is one-hot whatever the temperature."""

V1_ONLY = ("medusa", "mlp_speculator", "suffix")
"""Methods that the V2 runner has no drafter for (vllm/v1/worker/gpu/spec_decode/__init__.py)."""

XPRESS = ("Qwen3XPressModel", "DFlashQwen3XPressModel")
"""Architectures of drafters (vLLM serves them as method dflash) that take the argmax and never write q."""

TRANSPORT = "custom_class"
"""vLLM's `method` of a drafter that is a class of ours; its `model` is then the class's path."""

HEADS = {
    "medusa": ("vllm_patches.drafters.Medusa", ">=0.33"),
    "mlp_speculator": ("vllm_patches.drafters.MLPSpeculator", ""),
}
"""Drafting method -> its class of ours, and the versions of vLLM whose own proposer is missing or broken ("": all)."""


def ours(method: str, version: str) -> bool:
    """Whether a drafter of this method is a class of ours on this version of vLLM (`heads.engine_arguments`)."""
    return method in HEADS and SpecifierSet(HEADS[method][1]).contains(version, prereleases=True)


def transport(method: str, version: str | None) -> str:
    """What vLLM calls a drafting method: TRANSPORT for a class of ours. `version` None: there is no vLLM."""
    return TRANSPORT if version is not None and ours(method, version) else method


def own_name(method: str, model: str | None) -> str:
    """The drafting method behind vLLM's `method` and `model`: inverse of `transport`."""
    if method != TRANSPORT:
        return method
    return next((name for name, (path, _) in HEADS.items() if path == model), method)
