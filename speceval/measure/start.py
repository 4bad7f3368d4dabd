"""From a job to the engine that it asks for: the order, and whether the engine does what was asked."""

from __future__ import annotations

from typing import Any

from speceval import engines
from speceval.engines.base import Engine, Order
from speceval.errors import UserError
from speceval.measure.job import Job
from speceval.protocol import RunSpec
from speceval.store.schema import Facts


def order(job: Job) -> Order:
    """What `job` asks of its engine; its checkpoints must have been fetched, if the engine loads them."""
    spec = job.spec
    return Order(
        engine=spec.engine,
        target=job.target,
        draft=job.draft,
        k=spec.k,
        drafting=spec.drafting,
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        draft_truncation=spec.draft_truncation,
        rejection=spec.rejection,
        batch=spec.batch,
        seed=spec.seeds[0],
        prefix_caching=spec.prefix_caching,
        trust_remote_code=spec.trust_remote_code,
        runner=spec.runner,
        draft_args=spec.draft_args,
        engine_args=spec.engine_args,
        # Other rejection methods do not accept with probability r_j.
        record=spec.record and spec.temperature > 0 and spec.rejection == "standard",
        replay=job.texts is not None,
        forced=job.forced,
        timed=spec.rate is not None,
    )


def start_engine(job: Job) -> Engine:
    """The engine that `job` asks for: whoever starts it closes it. Raises `UserError`."""
    return engines.open(order(job))


def check_engine(engine: Engine, spec: RunSpec) -> None:
    """Raises `UserError` when the engine will not measure what was asked, or not rightly."""
    if engine.evidence != "steps" and spec.until is not None:
        raise UserError(f"--until: needs each step of a request, this server tells {engine.evidence}: leave it out")
    if engine.knows_settings:
        check_settings(engine.facts(), spec)
    if missing := engine.missing_patches():
        raise UserError(
            f"acceptance on this engine would be wrong without a patch that is not active: {missing[0]} "
            "(`speceval ls patches` tells more)"
        )


def check_settings(facts: Facts, spec: RunSpec) -> None:
    """Compare the engine's resolved settings with what was asked; raises `UserError` naming the first that differs."""
    asked: dict[str, Any] = {"k": spec.k, "prefix_caching": spec.prefix_caching}
    if spec.runner is not None:
        asked["runner"] = spec.runner.upper()
    if facts.generation_config is not None:
        asked["generation_config"] = "vllm"
    if spec.drafting != "deterministic" and spec.temperature > 0:  # at 0 a draw is the likeliest token
        asked["draft_sample_method"] = spec.drafting
    if spec.temperature > 0:
        asked["rejection_sample_method"] = spec.rejection
    if spec.drafting == "probabilistic" and (spec.top_k > 0 or spec.top_p < 1):
        asked["draft_truncation"] = spec.draft_truncation
    # vLLM turns switches of its own off where a platform cannot have them: asynchronous scheduling on a CPU.
    switches = {name: on for name, on in spec.engine_args.items() if isinstance(on, bool)}
    asked |= {name: on for name, on in switches.items() if getattr(facts, name, None) is not None}
    for name, value in asked.items():
        if (resolved := getattr(facts, name)) != value:
            raise UserError(f"the engine resolved {name} to {resolved!r}, asked for {value!r}: nothing was measured")
