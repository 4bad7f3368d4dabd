"""`speceval.run` and `speceval.verify`: what starts an engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from speceval.api.results import Run
from speceval.api.words import errors_by_parameter
from speceval.errors import UserError
from speceval.exactness.command import execute
from speceval.exactness.run import PROMPTS, Mode, Settings
from speceval.exactness.verdict import Report
from speceval.measure import launch, timing
from speceval.measure.job import Job, prepare, stored
from speceval.measure.output import output_to, terminal, unwatched
from speceval.measure.replay import INHERITED, inherited
from speceval.measure.replicas import launch as replicas_of
from speceval.measure.replicas.on_ray import Cluster
from speceval.measure.starting import Starting
from speceval.show import progress as display
from speceval.store import StoredRun, read_run, write_meta
from speceval.terminal import say


@errors_by_parameter({"--speedup-batch": "speedup"})
def run(
    target: str,
    draft: str,
    *,
    temperature: float,
    suites: Sequence[str | Path] = (),
    k: int | None = None,
    limit: int | None = None,
    stratified: bool = False,
    shuffle_seed: int | None = None,
    max_tokens: int | None = None,
    until: float | None = None,
    against: str | Path | StoredRun | None = None,
    seeds: Sequence[int] = (0,),
    top_p: float = 1.0,
    top_k: int = 0,
    drafting: Literal["probabilistic", "greedy"] | None = None,
    draft_truncation: bool = True,
    rejection: Literal["standard", "block"] = "standard",
    shard: str | None = None,
    batch: int = 32,
    rate: float | Literal["inf"] | None = None,
    record: bool = True,
    replay: str | Path | StoredRun | None = None,
    prefix_caching: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    engine: str = "vllm",
    runner: Literal["v1", "v2"] | None = None,
    method: str | None = None,
    draft_args: Mapping[str, Any] | None = None,
    engine_args: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    speedup: Sequence[int] = (),
    ray: str | None = None,
    replicas: int | None = None,
    gpus_per_replica: int | None = None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> Run:
    """Measure a drafter, as `speceval run` does: the same call resumes an interrupted run, and reads a finished one.

    Args:
        target: catalog name, hub id or directory.
        draft: the same, or "ngram" or "suffix".
        temperature: of the target, and of sampled drafts; 0 is greedy decoding.
        suites: names or files (.yaml, .jsonl); none: MT-Bench, HumanEval and GSM8K, with the zoo its demo.
        k: most draft tokens of a step; None: the drafter's own.
        limit: conversations of each suite.
        stratified: whether `limit` is taken evenly from the categories of each suite.
        shuffle_seed: shuffle each suite before `limit`.
        max_tokens: longest answer; None: the suite's own.
        until: relative half-width of tau's interval at which the run stops, such as 0.01.
        against: run whose paired difference `until` is about instead.
        seeds: samples of each conversation.
        top_p: nucleus of the target; 1 is off.
        top_k: of the target; 0 is off.
        drafting: None: "probabilistic" above temperature 0, else "greedy".
        draft_truncation: whether top-k and top-p truncate the drafter's distribution as they do the target's.
        rejection: how vLLM verifies.
        shard: "i/n": every n-th conversation alone, as on the i-th of n machines; `merge` joins them.
        batch: requests that the engine runs at once.
        rate: conversations that begin in a second, at random, on a server; "inf": as many at once as `batch`. Both also
            take times to the tokens; None: no times.
        record: whether to keep what the verifier saw of every sampled draft.
        replay: run whose texts the target is made to answer, so that only the drafts are new.
        prefix_caching: whether the engine may reuse prefixes.
        chat_template_kwargs: arguments of the chat template.
        engine: what generates: "vllm", "simulated", or the name of an entry point of `speceval.engines`.
        runner: vLLM's model runner; None: what vLLM chooses.
        method: drafting method, for a checkpoint that does not tell its own.
        draft_args: further keys of vLLM's speculative_config, such as prompt_lookup_max.
        engine_args: arguments of `vllm.LLM`.
        trust_remote_code: whether to run code that comes with a checkpoint.
        speedup: batch sizes at which to time the target alone beside the drafter (a process of its own: a script that
            asks for it needs `if __name__ == "__main__":`).
        ray: measure on the engines of a Ray cluster: "auto", "local" or its address, "host:port".
        replicas: with `ray`, engines; None: as many as have room.
        gpus_per_replica: with `ray`, accelerators of each; 0: a CPU; None: what `engine_args` share the target among.
        data_dir: folder with the suites' data files.
        out: the run's directory; None: `results/` and a name made of the request.
        progress: whether to show progress on standard error. Otherwise nothing is printed.

    Returns:
        The finished run; `validate` says whether its books balance. The engine's log is `engine.log` in its directory.

    Raises:
        UserError: what was asked for is impossible, or something that moves tau changed since the run began.
        KeyboardInterrupt: Ctrl-C; what is finished is stored, and the same call goes on.

    A finished run is read back without starting an engine. Source: docs/start/python.md.
    """
    command = _command("run", run, locals())
    asked: dict[str, Any] = {
        "temperature": temperature,
        "suites": [str(name) for name in _several(suites, "suites")],
        "limit": limit,
        "stratified": stratified,
        "shuffle_seed": shuffle_seed,
        "max_tokens": max_tokens,
        "seeds": tuple(seeds),
        "top_p": top_p,
        "top_k": top_k,
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
    }
    if replay is not None:
        if speedup:
            raise UserError("speedup: has no meaning with replay: leave it out")
        given = {name: asked[name] for name in INHERITED if asked[name] != _DEFAULTS[name]}
        asked = inherited(_directory(replay), target, draft, given, method)
    job = prepare(
        target=target,
        draft=draft,
        suite_names=list(asked.pop("suites")),
        k=k,
        drafting=drafting,
        until=until,
        against=None if against is None else _directory(against),
        data_dir=None if data_dir is None else Path(data_dir),
        out=None if out is None else Path(out),
        draft_truncation=draft_truncation,
        rejection=rejection,
        shard=shard,
        batch=batch,
        rate=rate,
        record=record,
        prefix_caching=prefix_caching,
        engine=engine,
        runner=runner,
        method=method,
        draft_args=dict(draft_args or {}),
        engine_args=dict(engine_args or {}),
        trust_remote_code=trust_remote_code,
        **asked,
    )
    job = replace(job, command=command)
    if speedup:
        timing.check(job.suites, speedup)  # now, not after the run
    finished = measure(job, progress, cluster(ray, replicas, gpus_per_replica, bool(speedup)))
    if speedup:
        finished = with_speedup(job, finished, speedup)
    return Run.of(finished)


_DEFAULTS: dict[str, Any] = {
    name: {"suites": [], "chat_template_kwargs": {}}.get(name, inspect.signature(run).parameters[name].default)
    for name in INHERITED
}
"""What a replay takes for a parameter that was not given."""


@errors_by_parameter()
def merge(*shards: str | Path, out: str | Path | None = None) -> Run:
    """Join all shards of a run, measured by themselves, into the run that one engine would have given.

    Args:
        shards: directories of runs with shard="1/n" … "n/n".
        out: directory of the whole; None: `results/` and a name made of the request.

    Raises:
        UserError: a shard is missing, twice there, unfinished or unsound, or they are not of one run; nothing is
            written then.
    """
    from speceval.measure import merge as merging

    words = [repr(str(shard)) for shard in shards] + ([] if out is None else [f"out={str(out)!r}"])
    command = ("python", "-c", f"import speceval; speceval.merge({', '.join(words)})")
    return Run.of(merging.merge(list(map(Path, shards)), None if out is None else Path(out), command))


@errors_by_parameter({"--n-tokens": "tokens", "--prompt": "prompts"})
def verify(
    target: str,
    draft: str,
    *,
    temperature: float = 1.0,
    k: int | None = None,
    top_p: float = 1.0,
    top_k: int = 0,
    drafting: Literal["probabilistic", "greedy"] | None = None,
    draft_truncation: bool = True,
    rejection: Literal["standard", "block"] = "standard",
    samples: int | None = None,
    tokens: int | None = None,
    prompts: Sequence[str] = PROMPTS,
    batch: int = 256,
    seeded: bool = False,
    greedy_share: float = 0.0,
    reference: Mode = "auto",
    bias: float = 0.02,
    prefix_caching: bool = False,
    engine: str = "vllm",
    runner: Literal["v1", "v2"] | None = None,
    method: str | None = None,
    draft_args: Mapping[str, Any] | None = None,
    engine_args: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    out: str | Path | None = None,
    progress: bool = False,
) -> Report:
    """Verify that speculative decoding on this engine samples what the target alone would, as `speceval verify` does.

    Args:
        samples: continuations to draw; None: 20,000, of two samples 60,000 each.
        tokens: length of a continuation; None: K + 4, at least 8.
        prompts: prompts to continue, as text.
        seeded: whether every request gets a seed of its own.
        greedy_share: share of requests sent greedy among the others, in [0, 1).
        reference: "exact", the target's own probabilities; "two-sample", a sample without speculation; "auto".
        bias: total variation distance that must be seen before the engine is called exact.
        out: directory of verify.json and the engine's log; None: results/verify/ and a name made of the request.
        target, draft, temperature and the others: as for `run`.

    Returns:
        The report: `verdict` ("exact", "biased" or "not enough samples"), `line()`, `checks`, `smallest_bias`.

    Raises:
        UserError: what was asked for is impossible.
    """
    settings = Settings(
        samples=samples,
        tokens=tokens,
        prompts=tuple(_several(prompts, "prompts")),
        seeded=seeded,
        greedy_share=greedy_share,
        reference=reference,
        bias=bias,
    )
    return execute(
        settings,
        None if out is None else Path(out),
        progress,
        target=target,
        draft=draft,
        temperature=temperature,
        k=k,
        top_k=top_k,
        top_p=top_p,
        drafting=drafting,
        draft_truncation=draft_truncation,
        rejection=rejection,
        batch=batch,
        prefix_caching=prefix_caching,
        engine=engine,
        runner=runner,
        method=method,
        draft_args=dict(draft_args or {}),
        engine_args=dict(engine_args or {}),
        trust_remote_code=trust_remote_code,
    )


def train_zoo(drafters: Collection[str]) -> dict[str, Path]:
    """Train what is missing of the zoo's target and of these drafters ("lk-eagle3"), side by side, for later runs.

    `run` does it by itself, one drafter after the other. Returns the directory of each model by its name; the target's
    is "target". Raises `UserError`.
    """
    from speceval import zoo

    return zoo.ensure(tuple(drafters))


def cluster(
    ray: str | None, replicas: int | None, gpus_per_replica: int | None, speedup: bool = False
) -> Cluster | None:
    """The cluster that is asked for; None: none is. Raises `UserError`."""
    if ray is None:
        for name, value in (("--replicas", replicas), ("--gpus-per-replica", gpus_per_replica)):
            if value is not None:
                raise UserError(f"{name}: has no meaning without --ray")
        return None
    if speedup:
        raise UserError("--speedup: is timed on one engine, without --ray: leave one out")
    return Cluster(ray, replicas, gpus_per_replica)


def measure(job: Job, progress: bool = False, on: Cluster | None = None) -> StoredRun:
    """Run a prepared job, or read it back when it is complete; `progress`: on standard error, else nothing is shown.

    on: the cluster whose engines measure it; None: one engine in this process does.
    """
    known = stored(job)
    if known is not None and known.complete:
        if progress:
            say(f"finished before: nothing was measured now, {job.directory} is printed again")
        return known
    if not progress:
        return launch.run(job, unwatched, output_to) if on is None else replicas_of.run(job, on, unwatched, output_to)
    with terminal() as console:
        starting = Starting(console, job.spec.engine)

        def log(path: Path) -> AbstractContextManager[None]:
            console.print(f"starting {job.spec.engine}; its log: {path}", markup=False, soft_wrap=True)
            return starting.log(path)

        try:
            if on is None:
                return launch.run(job, starting.until(display.watcher(console)), log)
            console.print(f"connecting to Ray ({on.address}); log: {job.directory / 'engine.log'}", soft_wrap=True)
            return replicas_of.run(job, on, display.watcher(console), output_to)
        except KeyboardInterrupt:
            count = read_run(job.directory).conversations if (job.directory / "run.json").exists() else 0
            console.print(f"interrupted: {count} conversations are in {job.directory}; the same command resumes")
            raise


def with_speedup(job: Job, finished: StoredRun, batches: Sequence[int], progress: bool = False) -> StoredRun:
    """The finished run with its speed-up at these batch sizes, timed now unless it has been."""
    if finished.meta.speedup is None or finished.meta.speedup.batches != list(batches):
        log = finished.directory / "speedup.log"
        if progress:
            say(f"timing with drafts and without, two engines in turns; their log: {log}")
        timed = timing.measure(job, batches, log)
        write_meta(finished.directory, finished.meta.model_copy(update={"speedup": timed}))
        finished = read_run(finished.directory)
    return finished


def _several(values: Sequence[Any], name: str) -> Sequence[Any]:
    """The values; one alone, which Python would take for its letters, is refused."""
    if isinstance(values, str | Path):
        raise UserError(f"{name} {str(values)!r}: one alone: write [{str(values)!r}]")
    return values


def _directory(run: str | Path | StoredRun) -> Path:
    return run.directory if isinstance(run, StoredRun) else Path(run)


def _plain(value: Any) -> Any:
    """A value whose `repr` is Python."""
    if isinstance(value, StoredRun | Path):
        return str(_directory(value))
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _command(name: str, function: Callable[..., Any], values: Mapping[str, Any]) -> tuple[str, ...]:
    """What a shell would be told to repeat a call; defaults, and what changes no result, are left out."""
    arguments = []
    for parameter in inspect.signature(function).parameters.values():
        value = values[parameter.name]
        if parameter.name == "progress" or value == parameter.default:
            continue
        text = repr(_plain(value))
        arguments.append(text if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else f"{parameter.name}={text}")
    return ("python", "-c", f"import speceval; speceval.{name}({', '.join(arguments)})")
