"""Everything that moves the acceptance length, and the environment for the record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from speceval import engines
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

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "datasets")
"""Beside ours and the engine's own: their versions are recorded."""


def make_fingerprint(job: Job, engine: Engine, template: runner.Template) -> Fingerprint:
    """Everything that moves tau (docs/build/architecture.md: the store)."""
    spec, patches = job.spec, [patch for patch in engine.patches() if patch.state == "active"]
    return Fingerprint(
        target=target_facts(job.target, spec, engine.loads_checkpoints),
        draft=checkpoint_facts(job.draft, engine.loads_checkpoints),
        suites={suite.name: suite_facts(suite, spec) for suite in job.suites},
        prompts=runner.prompts_hash(engine, job.suites, template),
        chat_template=digest(str(getattr(engine.tokenizer, "chat_template", ""))),
        chat_template_kwargs=spec.chat_template_kwargs,
        sampling=SamplingFacts(temperature=spec.temperature, top_p=spec.top_p, top_k=spec.top_k),
        drafting=spec.drafting,
        seeds=list(spec.seeds),
        limit=spec.limit,
        shuffle_seed=spec.shuffle_seed,
        stratified=spec.stratified,
        evidence=engine.evidence,
        rate=None if spec.rate == "inf" else spec.rate,
        engine=engine.facts(),
        replay=spec.replay,
        draft_args=spec.draft_args,
        drafter=engine.drafter(),
        served={name: _unplaced(str(engine.served[name])) for name in SERVED if name in engine.served},
        patches=sorted(patch.id for patch in patches),
        method_patches=sorted(patch.id for patch in patches if patch.bound),
    )


SERVED = ("model", "target", "draft")
"""Of what a server tells; the rest of it is in its facts."""


def _unplaced(name: str) -> str:
    """A name without the place on the server's machine that it may be."""
    return f"{Path(name).name} ({digest(name)[:8]})" if Path(name).is_absolute() else name


def environment(engine: str = "vllm") -> Environment:
    """Machine and package versions, an engine's among them, for the record only; asked once the engine has started."""
    kind = engines.find(engine)
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=os.cpu_count(),
        packages=versions(["speceval", *kind.packages, *PACKAGES]),
        variables={name: os.environ[name] for name in kind.variables if name in os.environ},
    )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Name and version of those of the packages that are installed."""
    return {name: version for name in packages if (version := _version(name))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
