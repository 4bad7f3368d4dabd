"""A run that has been asked for and found possible, before any engine has started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speceval import catalog, engines, suites
from speceval.catalog.methods import default_drafting, find
from speceval.engines.base import check_arguments
from speceval.errors import DoesNotFit, UserError
from speceval.measure import content, until
from speceval.protocol import LOSSLESS, RunSpec, make_spec
from speceval.store import StoredRun, read_meta, read_run, run_directory
from speceval.store.layout import Texts
from speceval.store.schema import Fingerprint, other_request
from speceval.suites import Suite

BENCHMARKS = ("mt_bench", "humaneval", "gsm8k")
"""Suites of a run that names none."""


@dataclass(frozen=True)
class Job:
    """A run that has been asked for and found possible, before any engine has started."""

    spec: RunSpec
    target: catalog.Target
    draft: catalog.Draft
    suites: list[Suite]
    directory: Path
    texts: Texts | None = None
    """What the target is made to answer, when a run is replayed."""
    source: Fingerprint | None = None
    """Of the run that answered so."""
    forced: tuple[float, ...] | None = None
    """Unconditional acceptance rate of positions 1 … K that the engine is made to have: `speceval selftest`."""
    against: StoredRun | None = None
    """The run whose difference `--until` is about."""
    command: tuple[str, ...] = ()
    """What a shell would be told to ask for it again; empty: this process's own command line."""


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
    engine: str = "vllm",
    method: str | None = None,
    engine_args: dict[str, Any] | None = None,
    texts: Texts | None = None,
    source: Fingerprint | None = None,
    against: Path | None = None,
    load: Callable[..., Suite] = suites.load,
    long: bool = True,
    **fields: Any,
) -> Job:
    """Check everything that can be checked without an engine. Raises `UserError` with one line.

    `texts` are the answers of a run that is replayed and `source` its fingerprint, `against` is the run whose
    difference `until` is about, `load` loads a suite, `fields` are the other fields of `RunSpec`. `out` is the run's
    directory, by default `results/<name of the spec>` or where an earlier version put the same run. `long`: whether one
    engine generates all of it, so that its start may take the longer the more there is.
    """
    fields, reference = until.ask(fields, against, replayed=texts is not None)
    pair = catalog.resolve(target, draft, method)
    assert pair.draft is not None
    if temperature == 0 and drafting == "probabilistic":
        raise DoesNotFit("--drafting probabilistic: needs a temperature above 0", "temperature", "drafting")
    names = suite_names or (["demo"] if pair.target.source == "zoo" else list(BENCHMARKS))
    spec = make_spec(
        target=pair.target.name,
        draft=pair.draft.name,
        k=_choose_k(pair.draft, k),
        temperature=temperature,
        drafting=drafting or default_drafting(pair.draft.method, max(temperature, 0)),
        suites=tuple(names),
        method=method,
        chat_template_kwargs={**pair.target.chat_template_kwargs, **(chat_template_kwargs or {})},
        engine=engine,
        engine_args=engine_args or {},
        **fields,
    )
    engine_class = engines.find(spec.engine)  # starting one to hear it takes long
    check_arguments(spec.engine_args, engine_class.arguments(), f"engine {spec.engine}", engine_class.without_effect)
    _check_method(spec, pair.draft.method)
    _check_draft_args(spec, pair.draft)
    if spec.shard is not None and spec.until is not None:
        raise UserError("--until: has no meaning with --shard, which knows its own part alone: leave one out")
    if spec.rate is not None and spec.shard is not None:
        raise UserError("--rate: is the load of a whole run: leave --shard out")
    if spec.rate is not None and not engine_class.timed:
        raise UserError(f"--rate: engine {engine} does not tell times: measure a server (--url, --through-server)")
    if spec.stratified and spec.limit is None:
        raise UserError("--stratified: says how --limit is taken: give --limit too, or leave it out")
    loaded = [load(name, data_dir, spec.limit, spec.shuffle_seed, spec.stratified) for name in spec.suites]
    called = [suite.name for suite in loaded]
    if twice := [name for name in called if called.count(name) > 1]:
        raise UserError(f"--suite {','.join(names)}: two suites are called {twice[0]}: rename one")
    if reference is not None:
        loaded = until.restrict(loaded, reference)
    tokens = most_tokens(spec, loaded) if long and spec.runner != "v2" else 0
    defaults = engine_class.defaults(pair.target, tokens)
    spec = spec.model_copy(update={"engine_args": {**defaults, **spec.engine_args}})
    directory = out or run_directory(Path("results"), spec)
    return Job(spec, pair.target, pair.draft, loaded, directory, texts, source, against=reference)


def most_tokens(spec: RunSpec, loaded: list[Suite]) -> int:
    """How many tokens a run generates if every answer is as long as it may be."""
    turns = [(suite, len(conversation.turns)) for suite in loaded for conversation in suite.conversations]
    return len(spec.seeds) * sum(count * (spec.max_tokens or suite.max_tokens) for suite, count in turns)


OF_METHODS = {"prompt_lookup_": {"ngram", "ngram_gpu"}, "suffix_decoding_": {"suffix"}}
"""How keys of vLLM's speculative_config begin that some methods alone read."""
OF_A_MODEL = ("draft_tensor_parallel_size", "parallel_drafting", "quantization", "revision", "code_revision")
"""Those that are about a drafter's checkpoint."""


def _check_draft_args(spec: RunSpec, draft: catalog.Draft) -> None:
    """Raises `UserError` for a key that the drafter's method does not read: it would be stored as if it had."""
    for key in spec.draft_args:
        others = any(key.startswith(begin) and draft.method not in methods for begin, methods in OF_METHODS.items())
        if others or (draft.model is None and key in OF_A_MODEL):
            raise UserError(f"--draft-arg {key}: has no meaning for {draft.method} drafts: leave it out")


def against(job: Job, directory: Path) -> Job:
    """The same run, which stops when its difference to the run in `directory` is known as well as `until` says.

    Raises `UserError` when that run is not finished.
    """
    asked = {"until": job.spec.until, "shuffle_seed": job.spec.shuffle_seed}
    fields, reference = until.ask(asked, directory, replayed=False)
    assert reference is not None
    spec = job.spec.model_copy(update=fields)
    return replace(job, spec=spec, suites=until.restrict(job.suites, reference), against=reference)


def _choose_k(draft: catalog.Draft, k: int | None) -> int:
    chosen = k if k is not None else draft.default_k
    if chosen is None:
        raise UserError(f"--k is needed: nothing says how many tokens {draft.name} should draft a step")
    catalog.check_k(draft, chosen)
    return chosen


def _check_method(spec: RunSpec, method: str) -> None:
    draft = spec.draft
    if spec.rejection not in LOSSLESS:
        raise UserError(
            f"--rejection {spec.rejection}: is not lossless, nothing to measure: use {' or '.join(LOSSLESS)}"
        )
    deterministic = find(method).deterministic
    if deterministic != (spec.drafting == "deterministic"):
        only = "deterministic" if deterministic else "probabilistic or greedy"
        raise DoesNotFit(f"--drafting {spec.drafting}: {draft} ({method}) drafts {only}", "draft", "drafting")


def stored(job: Job) -> StoredRun | None:
    """The run as it stands in the store, or None.

    Raises `UserError` when the directory holds another run, or one of what was called the same and is not what it was.
    """
    if not (job.directory / "run.json").exists():
        return None
    meta = read_meta(job.directory)
    if other := other_request(meta, job.spec):
        raise UserError(f"--out {job.directory} holds another run ({'; '.join(other)}): name another directory")
    changes = content.changes(job.spec, job.target, job.draft, job.suites, meta.fingerprint)
    content.require_unchanged(job.directory, meta.status, changes)
    return read_run(job.directory)
