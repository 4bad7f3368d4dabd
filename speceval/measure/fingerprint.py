"""Everything that moves the acceptance length, and the environment for the record."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from speceval.engines.base import Engine
from speceval.measure import runner
from speceval.measure.content import checkpoint_facts, suite_facts, target_facts
from speceval.measure.job import Job
from speceval.protocol import (
    digest,
)
from speceval.store.schema import (
    Environment,
    Fingerprint,
    SamplingFacts,
)
from vllm_patches.versions import DISTRIBUTIONS


def make_fingerprint(job: Job, engine: Engine, template: runner.Template) -> Fingerprint:
    """Everything that moves tau (docs/build/architecture.md: the store)."""
    spec = job.spec
    return Fingerprint(
        target=target_facts(job.target, spec),
        draft=checkpoint_facts(job.draft),
        suites={suite.name: suite_facts(suite, spec) for suite in job.suites},
        prompts=runner.prompts_hash(engine, job.suites, template),
        chat_template=digest(str(getattr(engine.tokenizer, "chat_template", ""))),
        chat_template_kwargs=spec.chat_template_kwargs,
        sampling=SamplingFacts(temperature=spec.temperature, top_p=spec.top_p, top_k=spec.top_k),
        drafting=spec.drafting,
        seeds=list(spec.seeds),
        limit=spec.limit,
        shuffle_seed=spec.shuffle_seed,
        engine=engine.facts(),
        replay=spec.replay,
        draft_args=spec.draft_args,
        patches=sorted({status.id for status in engine.patches() if status.state == "active"}),
    )


def environment() -> Environment:
    """Machine and package versions, for the record only."""
    packages = ["speceval", *DISTRIBUTIONS, "torch", "transformers", "tokenizers", "numpy", "datasets"]
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=os.cpu_count(),
        packages={name: version for name in packages if (version := _version(name))},
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
