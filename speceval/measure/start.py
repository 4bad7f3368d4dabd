"""The engine that a job asks for: started, and its settings read back."""

from __future__ import annotations

import os
from typing import Any

import vllm_patches
import vllm_patches.methods
import vllm_patches.refuse
from speceval import catalog
from speceval.engines.base import Engine
from speceval.engines.vllm.offline import OfflineEngine, require_vllm
from speceval.errors import UserError
from speceval.measure.job import Job
from speceval.protocol import (
    RunSpec,
)
from speceval.store.schema import (
    Facts,
)
from vllm_patches import settings

ZOO_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""The zoo's models are too small for a second thread: threads that wait for each other cost more than they bring."""


def start_engine(job: Job, alone: bool = False) -> OfflineEngine:
    """The vLLM engine that `job` asks for, or one of its target alone; its checkpoints must have been fetched."""
    spec = job.spec
    if job.target.source == "zoo":
        for name, value in ZOO_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    arguments = drafter_arguments(job.draft, spec)
    additional = {settings.DRAFT_TRUNCATION: spec.draft_truncation, **arguments.get("additional_config", {})}
    if job.forced is not None:
        arguments["speculative_config"]["synthetic_acceptance_rates"] = list(job.forced)
        additional[settings.KNOWN_ANSWER] = True
    return OfflineEngine(
        model=job.target.model,
        revision=job.target.revision,
        speculative=None if alone else arguments["speculative_config"],
        additional=additional,
        batch=spec.batch,
        seed=spec.seeds[0],
        prefix_caching=spec.prefix_caching,
        trust_remote_code=spec.trust_remote_code,
        engine_args=spec.engine_args,
        # Other rejection methods do not accept with probability r_j.
        record=spec.record and spec.temperature > 0 and spec.rejection == "standard" and not alone,
        replay=job.texts is not None and not alone,
    )


def drafter_arguments(draft: catalog.Draft, spec: RunSpec) -> dict[str, Any]:
    """vLLM's arguments that name the drafter: `speculative_config`, and `additional_config` for drafters of ours."""
    if vllm_patches.methods.ours(draft.method, require_vllm()):
        from vllm_patches import drafters as heads

        checkpoint = f"{draft.model}@{draft.revision}" if draft.revision else str(draft.model)
        arguments = heads.engine_arguments(draft.method, checkpoint, spec.k, spec.drafting)
    else:
        speculative = {"method": draft.method, "num_speculative_tokens": spec.k, **draft.engine_args}
        if draft.model is not None:
            speculative |= {"model": draft.model, "revision": draft.revision}
        if spec.drafting != "deterministic":
            speculative["draft_sample_method"] = spec.drafting
        arguments = {"speculative_config": speculative}
    arguments["speculative_config"] |= spec.draft_args
    if spec.rejection != "standard":
        arguments["speculative_config"]["rejection_sample_method"] = spec.rejection
    return arguments


def check_engine(engine: Engine, spec: RunSpec) -> None:
    """Raises `UserError` when the engine will not measure what was asked, or not rightly."""
    facts = engine.facts()
    check_settings(facts, spec)
    missing = missing_patches(engine, spec)
    if missing:
        raise UserError(
            f"sampled acceptance on this engine would be wrong without a patch that is not active: {missing[0]} "
            "(`speceval ls patches` tells more)"
        )


def check_settings(facts: Facts, spec: RunSpec) -> None:
    """Compare the engine's resolved settings with what was asked; raises `UserError` naming the first that differs."""
    asked: dict[str, Any] = {"k": spec.k, "prefix_caching": spec.prefix_caching, "generation_config": "vllm"}
    if spec.drafting != "deterministic":
        asked["draft_sample_method"] = spec.drafting
    if spec.temperature > 0:
        asked["rejection_sample_method"] = spec.rejection
    if spec.drafting == "probabilistic" and (spec.top_k > 0 or spec.top_p < 1):
        asked["draft_truncation"] = spec.draft_truncation
    for name, value in asked.items():
        if (resolved := getattr(facts, name)) != value:
            raise UserError(f"the engine resolved {name} to {resolved!r}, asked for {value!r}: nothing was measured")


def missing_patches(engine: Engine, spec: RunSpec) -> list[str]:
    """One line for each patch that the run needs and that is not active where the engine samples."""
    facts = engine.facts()
    return vllm_patches.missing(
        engine.patches(),
        device=facts.device,
        temperature=spec.temperature,
        method=vllm_patches.methods.transport(facts.method, facts.vllm),
        runner=facts.runner,
    )
