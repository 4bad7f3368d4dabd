"""From a user's request to a finished run: resolve names, start the engine, check it, measure, check the books."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import vllm_patches
import vllm_patches.methods
import vllm_patches.refuse
from speceval import books, catalog, runner, suites, until
from speceval.catalog.methods import default_drafting, find
from speceval.display import Watch
from speceval.engines import Engine
from speceval.engines.offline import OfflineEngine, require_vllm
from speceval.errors import UserError
from speceval.protocol import (
    RunSpec,
    digest,
    make_spec,
)
from speceval.schema import (
    Checkpoint,
    Environment,
    Facts,
    Fingerprint,
    PatchState,
    RunMeta,
    SamplingFacts,
    Segment,
    SuiteFacts,
    differences,
    other_request,
)
from speceval.store import Store, StoredRun, read_meta, read_run, run_directory
from speceval.stretch import account_for
from speceval.suites import Suite
from speceval.weights import weights_hash
from vllm_patches import settings
from vllm_patches.versions import DISTRIBUTIONS

BENCHMARKS = ("mt_bench", "humaneval", "gsm8k")
"""Suites of a run that names none."""

ZOO_ENGINE_ARGS = {"dtype": "float32", "enforce_eager": True}
"""The zoo's models are float32 and too small to be worth compiling."""

ZOO_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""The zoo's models are too small for a second thread: threads that wait for each other cost more than they bring."""


FORCED = "the acceptance was forced (rejection_sample_method=synthetic): tau is what was put in, no measurement"
"""Problem of every run with forced rates: whatever shows a run shows it."""


@dataclass(frozen=True)
class Job:
    """A run that has been asked for and found possible, before any engine has started."""

    spec: RunSpec
    target: catalog.Target
    draft: catalog.Draft
    suites: list[Suite]
    directory: Path
    texts: runner.Texts | None = None
    """What the target is made to answer, when a run is replayed."""
    forced: tuple[float, ...] | None = None
    """Unconditional acceptance rate of positions 1 … K that the engine is made to have: `speceval selftest`."""
    against: StoredRun | None = None
    """The run whose difference `--until` is about."""


def prepare(
    *,
    target: str,
    draft: str,
    temperature: float,
    suite_names: list[str],
    k: int | None = None,
    drafting: str | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    engine_args: dict[str, Any] | None = None,
    texts: runner.Texts | None = None,
    against: Path | None = None,
    **fields: Any,
) -> Job:
    """Check everything that can be checked without an engine. Raises `UserError` with one line.

    `texts` are the answers of a run that is replayed, `against` is the run whose difference `until` is about, `fields`
    are the other fields of `RunSpec`. `out` is the run's directory, by default `results/<name of the spec>` or where
    an earlier version put the same run.
    """
    fields, reference = until.ask(fields, against, replayed=texts is not None)
    pair = catalog.resolve(target, draft)
    assert pair.draft is not None
    names = suite_names or (["demo"] if pair.target.source == "zoo" else list(BENCHMARKS))
    spec = make_spec(
        target=pair.target.name,
        draft=pair.draft.name,
        k=_choose_k(pair.draft, k),
        temperature=temperature,
        drafting=drafting or default_drafting(pair.draft.method, max(temperature, 0)),
        suites=tuple(names),
        chat_template_kwargs={**pair.target.chat_template_kwargs, **(chat_template_kwargs or {})},
        engine_args={**(ZOO_ENGINE_ARGS if pair.target.source == "zoo" else {}), **(engine_args or {})},
        **fields,
    )
    _check_method(spec, pair.draft.method)
    loaded = [suites.load(name, data_dir, spec.limit, spec.shuffle_seed) for name in spec.suites]
    if len({suite.name for suite in loaded}) < len(loaded):
        raise UserError(f"--suite {','.join(names)}: two suites are called {loaded[0].name}: rename one")
    if reference is not None:
        loaded = until.restrict(loaded, reference)
    directory = out or run_directory(Path("results"), spec)
    return Job(spec, pair.target, pair.draft, loaded, directory, texts, against=reference)


def _choose_k(draft: catalog.Draft, k: int | None) -> int:
    chosen = k if k is not None else draft.default_k
    if chosen is None:
        raise UserError(f"--k is needed: nothing says how many tokens {draft.name} should draft a step")
    catalog.check_k(draft, chosen)
    return chosen


def _check_method(spec: RunSpec, method: str) -> None:
    draft = spec.draft
    if reason := vllm_patches.refuse.rejection(spec.rejection):
        raise UserError(f"--rejection {spec.rejection}: {reason}")
    deterministic = find(method).deterministic
    if deterministic != (spec.drafting == "deterministic"):
        only = "deterministic" if deterministic else "probabilistic or greedy"
        raise UserError(f"--drafting {spec.drafting}: {draft} ({method}) drafts {only}")


def stored(job: Job) -> StoredRun | None:
    """The run as it stands in the store, or None. Raises `UserError` when the directory holds another run."""
    if not (job.directory / "run.json").exists():
        return None
    if other := other_request(read_meta(job.directory), job.spec):
        raise UserError(f"--out {job.directory} holds another run ({'; '.join(other)}): name another directory")
    return read_run(job.directory)


def run(job: Job, watch: Watch, log: Callable[[Path], AbstractContextManager[None]]) -> StoredRun:
    """Measure what the store does not hold yet and return the finished run.

    `watch` shows progress; `log` sends the engine's own output to a file while its context is open.
    Raises `UserError`; an interrupt or a kill leaves a store that the same call resumes.
    """
    require_vllm()
    job = fetch(job)
    with Store(job.directory) as store, log(job.directory / "engine.log"):
        engine = start_engine(job)
        check_engine(engine, job.spec)
        template = runner.Template(job.spec.chat_template_kwargs, job.target.answer_marker)
        meta = _open_meta(store, job, engine, template)
        engine.warm_up()
        planned = len(runner.plan(job.suites, job.spec.seeds))
        progress = runner.Progress(planned, done=len(store.done), counts=store.counts)
        goal = until.goal(job.spec, job.suites, job.against)
        looks = None if goal is None else until.Looks(goal, store)
        ahead = runner.QUEUE_AHEAD if looks is None else until.AHEAD
        earlier = meta.segments

        def keep(segment: Segment) -> None:
            meta.segments = [*earlier, segment]
            store.write_meta(meta)

        with watch(progress, job.spec) as changed:
            runner.measure(
                engine, job.spec, job.suites, template, store, progress, changed, job.texts, ahead, looks, keep
            )
        turns, steps = store.frames()
        meta.problems += books.check(turns, steps, job.spec, meta.segments, list(store.counts))
        if job.forced is not None:
            meta.problems.append(FORCED)
        meta.status = "inconsistent" if meta.problems else "complete"
        meta.finished = _now()
        if goal is not None:
            meta.stopping = until.report(goal, turns)
        counted = None if goal is None or meta.stopping is None else until.counted(goal, meta.stopping)
        store.finish(meta, counted)
    return read_run(job.directory)


def fetch(job: Job) -> Job:
    """The job with its checkpoints at hand (`catalog.fetch`) and K within their limits. Raises `UserError`."""
    pair = catalog.fetch(catalog.Pair(target=job.target, draft=job.draft))
    assert pair.draft is not None
    catalog.check_k(pair.draft, job.spec.k)
    return replace(job, target=pair.target, draft=pair.draft)


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
        from vllm_patches import heads

        checkpoint = f"{draft.model}@{draft.revision}" if draft.revision else str(draft.model)
        arguments = heads.engine_arguments(draft.method, checkpoint, spec.k, spec.drafting)
    else:
        speculative = {"method": draft.method, "num_speculative_tokens": spec.k, **draft.engine_args}
        if draft.model is not None:
            speculative |= {"model": draft.model, "revision": draft.revision}
        if spec.drafting != "deterministic":
            speculative["draft_sample_method"] = spec.drafting
        arguments = {"speculative_config": speculative}
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


def _open_meta(store: Store, job: Job, engine: Engine, template: runner.Template) -> RunMeta:
    """run.json's content: a new run's, or the stored one's after a check that nothing changed under it."""
    fingerprint = make_fingerprint(job, engine, template)
    if job.against is not None:
        until.check_against(job.against, fingerprint)
    meta = store.read_meta()
    if meta is not None:
        changes = differences(meta.fingerprint, fingerprint)
        if changes:
            raise UserError(
                f"{job.directory}: cannot resume, something that moves tau changed since the run began "
                f"({'; '.join(changes)}): undo that, or name another --out"
            )
        meta.segments = account_for(meta.segments, len(store.done))
        return meta
    meta = RunMeta(
        name=job.spec.name,
        status="running",
        created=_now(),
        command=["speceval", *(part.encode(errors="backslashreplace").decode() for part in sys.argv[1:])],
        spec=job.spec,
        fingerprint=fingerprint,
        fingerprint_hash=fingerprint.hash,
        conversations=len(runner.plan(job.suites, job.spec.seeds)),
        environment=environment(),
        patches=[PatchState(**asdict(status)) for status in engine.patches()],
        segments=[],
        problems=[],
    )
    store.write_meta(meta)
    return meta


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


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
