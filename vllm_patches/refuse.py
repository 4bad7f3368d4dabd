"""Combinations that no patch makes right: refused before an engine starts, with one clear line.

Pure functions of the version and the settings; vLLM is not imported. `unpatched.ROWS` says why,
docs/trust/which-vllm-is-exact.md has the measurements, `guard` asks before vLLM starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packaging.version import Version

from vllm_patches import settings
from vllm_patches.methods import DETERMINISTIC, HEADS, HEADS_ON_V2, TRANSPORT, V1_ONLY, XPRESS, own_name
from vllm_patches.versions import within

BLOCK_EXACT = Version("0.33")
MEASURED_SWITCH = "SPECEVAL_MEASURED"
"""Environment variable; "1" says that an engine is started to be measured. What a plain vLLM is only warned of then
stops the engine: a version that nothing here knows, or a patch that does not fit. speceval sets this while it starts
its own engines."""


def check(
    version: str,
    runner: str,
    speculative_config: Mapping[str, Any],
    *,
    temperature: float = 1.0,
    structured_outputs: bool = False,
    target_vocab: int | None = None,
    draft_vocab: int | None = None,
    draft_architectures: Sequence[str] = (),
    known_answer: bool = False,
) -> str | None:
    """Why this combination is refused, in one line with the mend; None if it is not.

    `version` is vLLM's (a supported one: `versions.unsupported` tells), `runner` "V1" or "V2", `speculative_config` as
    given to vLLM (unset keys mean vLLM's defaults), `temperature` the largest of the run, `structured_outputs` whether
    any request has a grammar and the patches for it do not fit this vLLM (`guard`).
    `target_vocab` and `draft_vocab` are the widths of the two models' logits, if known (after d2t mapping),
    `draft_architectures` is the drafter's `architectures` in its config.json. `known_answer` allows synthetic
    rejection, and nothing else (`settings.KNOWN_ANSWER`).
    """
    config = dict(speculative_config)
    method = config.get("rejection_sample_method")
    exempt = known_answer and method == "synthetic"
    rules = (
        _count(config),
        _undrafted(version, runner, config),
        rejection(method, version, runner) if temperature > 0 and not exempt else None,
        _xpress(config, draft_architectures) if temperature > 0 else None,
        _grammar(runner, config) if temperature > 0 and structured_outputs else None,
        _widths(runner, config, target_vocab, draft_vocab),
    )
    return next((reason for reason in rules if reason), None)


def check_config(config: Any, version: str) -> str | None:
    """`check` of a resolved `vllm.config.VllmConfig`, at the highest temperature a request could ask for."""
    spec = config.speculative_config
    if spec is None:
        return None
    names = ("method", "model", "num_speculative_tokens", "draft_sample_method", "rejection_sample_method")
    draft = getattr(spec, "draft_model_config", None) if spec.method not in DETERMINISTIC else None
    return check(
        version,
        "V2" if config.use_v2_model_runner else "V1",
        {name: getattr(spec, name, None) for name in names},
        target_vocab=config.model_config.get_vocab_size() if draft is not None else None,
        draft_vocab=draft.get_vocab_size() if draft is not None else None,
        draft_architectures=getattr(getattr(draft, "hf_config", None), "architectures", None) or (),
        known_answer=settings.known_answer(config),
    )


def unrecordable(config: Any) -> str | None:
    """Why what an engine with this resolved `vllm.config.VllmConfig` accepts cannot be measured; None if it can.

    Options of the V2 runner that sample rightly.
    """
    if getattr(config.speculative_config, "enable_adaptive_verification", False):
        return "enable_adaptive_verification: fewer drafts are verified than vLLM says were drafted: leave it off here"
    if getattr(config.parallel_config, "enable_batch_sharded_sampling", False):
        return (
            "enable_batch_sharded_sampling: each rank verifies requests of its own, and one rank's are recorded: leave "
            "it off to measure"
        )
    return None


def sampled_drafts(config: Mapping[str, Any]) -> bool:
    """Whether drafts are drawn from q; vLLM's default is the argmax."""
    return config.get("draft_sample_method") == "probabilistic" and config.get("method") not in DETERMINISTIC


def _count(config: Mapping[str, Any]) -> str | None:
    k = config.get("num_speculative_tokens")
    if k is None or (isinstance(k, int) and k >= 1):
        return None
    return f"num_speculative_tokens={k}: nothing would be drafted: give a whole number from 1 on"


def _undrafted(version: str, runner: str, config: Mapping[str, Any]) -> str | None:
    method = own_name(str(config.get("method")), config.get("model"))
    if runner == "V1" or method not in (*V1_ONLY, *HEADS):
        return None
    if config.get("method") == TRANSPORT and within(HEADS_ON_V2, version):
        return None
    return f"the V2 runner has no drafter for {method}: use the V1 runner (--runner v1, VLLM_USE_V2_MODEL_RUNNER=0)"


def rejection(method: str | None, version: str | None = None, runner: str | None = None) -> str | None:
    """Why a rejection method does not measure acceptance losslessly; None if it does.

    `method` None is vLLM's default. Without `version` and `runner`: what holds in all of them.
    """
    mend = "use rejection_sample_method=standard"
    if method in (None, "standard"):
        return None
    if method == "block":
        if version is None:
            return None
        if runner == "V1":
            return f"rejection_sample_method=block: the V1 runner ignores it and drops q: {mend}"
        if Version(version.partition("+")[0]) < BLOCK_EXACT:
            return (
                f"rejection_sample_method=block is biased in vLLM {version} (it reuses random numbers from round to "
                f"round; right from {BLOCK_EXACT} on): {mend}"
            )
        return None
    if method == "synthetic":
        return (
            f"rejection_sample_method=synthetic accepts at rates it is given: not lossless, nothing to measure: {mend}"
        )
    if method == "fly":
        return f"rejection_sample_method=fly is lossy by design, its output does not follow the target: {mend}"
    return f"rejection_sample_method={method} is not known to be lossless: {mend}"


def _xpress(config: Mapping[str, Any], architectures: Sequence[str]) -> str | None:
    if not set(architectures) & set(XPRESS) or not sampled_drafts(config):
        return None
    return (
        "an XPress drafter with draft_sample_method=probabilistic: its drafts are argmaxes and the verifier takes a q "
        "that was never written: use draft_sample_method=greedy"
    )


def _grammar(runner: str, config: Mapping[str, Any]) -> str | None:
    """Where the patches for this do not fit; V1's (`v1-draft-streams`) is one that every sampled draft needs."""
    if runner == "V1" or not sampled_drafts(config):
        return None
    return (
        "structured outputs with draft_sample_method=probabilistic are biased: a draft that breaks the grammar is "
        "replaced by a token from the target before it is verified: use draft_sample_method=greedy"
    )


def _widths(runner: str, config: Mapping[str, Any], target: int | None, draft: int | None) -> str | None:
    if target is None or draft is None or target == draft or not sampled_drafts(config):
        return None
    if runner == "V2" and draft < target:
        return None
    return (
        f"the drafter's logits are {draft} wide, the target's {target}: the {runner} runner would read q at the wrong "
        "places: use a drafter of the same vocabulary, or draft_sample_method=greedy"
    )
