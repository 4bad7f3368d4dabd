"""Everything that moves the acceptance length, and the environment for the record."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from speceval import catalog
from speceval.engines.base import Engine
from speceval.measure import runner
from speceval.measure.job import Job
from speceval.measure.weights import weights_hash
from speceval.protocol import (
    digest,
)
from speceval.store.schema import (
    Checkpoint,
    Environment,
    Fingerprint,
    SamplingFacts,
    SuiteFacts,
)
from vllm_patches.versions import DISTRIBUTIONS


def make_fingerprint(job: Job, engine: Engine, template: runner.Template) -> Fingerprint:
    """Everything that moves tau (docs/build/architecture.md: the store)."""
    spec = job.spec
    return Fingerprint(
        target=_checkpoint(job.target.name, job.target),
        draft=_checkpoint(job.draft.name, job.draft),
        suites={
            suite.name: SuiteFacts(
                version=suite.version,
                dataset=suite.dataset_hash,
                conversations=len(suite.conversations),
                max_tokens=spec.max_tokens or suite.max_tokens,
            )
            for suite in job.suites
        },
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


def _checkpoint(name: str, checkpoint: catalog.Target | catalog.Draft) -> Checkpoint:
    """A checkpoint without the place where this machine keeps it."""
    model, revision = checkpoint.model, checkpoint.revision
    return Checkpoint(
        name=name,
        model=model if checkpoint.source == "hub" else checkpoint.source,
        revision=revision,
        weights=weights_hash(model, revision) if model else None,
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
