"""`speceval.tune`: which drafter and which K to serve with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Group
from rich.jupyter import JupyterMixin

from speceval import engines
from speceval.api.words import errors_by_parameter
from speceval.errors import DoesNotFit, UserError
from speceval.estimate import speedup, tuning
from speceval.estimate.tuning import ALONE, Measured, Rate, Setting
from speceval.files import write_whole
from speceval.fitting import Fitting
from speceval.measure import timing
from speceval.measure import tune as bursting
from speceval.measure.job import Job, prepare
from speceval.measure.launch import fetch
from speceval.measure.output import output_to, terminal
from speceval.measure.start import order
from speceval.store.schema import versioned
from speceval.terminal import say, wrote

MOST_K = 8
"""Where no K is asked for."""


@dataclass(frozen=True)
class Tuning(JupyterMixin):
    """Tokens per second of every drafter and K at every batch size."""

    rates: list[Rate]
    content: dict[str, Any]

    def best(self, batch: int) -> Rate:
        """The fastest at a batch size."""
        for rate in self.rates:
            if rate.batch == batch and rate.best:
                return rate
        raise UserError(f"batch {batch}: was not tried")

    def __rich__(self) -> Any:
        from speceval.show import tuning as shown

        return Group(Fitting(shown.table(self.rates), heads=2), *shown.lines(self.content))

    def as_json(self) -> dict[str, Any]:
        """What `speceval tune --json` prints: plain data with a schema number."""
        return versioned("tune", self.content)


@errors_by_parameter({"--batch": "batches", "--bursts": "bursts"})
def tune(
    target: str,
    drafts: Sequence[str],
    *,
    batches: Sequence[int] = (1, 4, 16, 64),
    ks: Sequence[int] = (),
    temperature: float = 1.0,
    suite: str | Path = "",
    max_tokens: int | None = None,
    bursts: int = 32,
    answers: int = 64,
    beside: bool | None = None,
    confirm: bool = True,
    engine: str = "vllm",
    runner: Literal["v1", "v2"] | None = None,
    engine_args: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    plot: str | Path | None = None,
    progress: bool = False,
) -> Tuning:
    """Find the drafter and the K that give the most tokens per second at each batch size, as `speceval tune` does.

    Args:
        target, drafts: as for `run`.
        batches: requests that run at once.
        ks: draft tokens of a step, as far as each drafter goes; none: 1 to 8.
        temperature: of the target, and of sampled drafts.
        suite: whose prompts are generated; "": MT-Bench, with the zoo its demo.
        max_tokens: longest answer; None: the suite's own.
        bursts: timed at each batch size, 16 steps of the engine each.
        answers: of the target, that acceptance is told from.
        beside: whether the target alone stands beside each engine and is timed in turns with it, which takes memory for
            both; None: on a CPU. Otherwise it is timed before and after all others.
        confirm: whether to time the best of each batch size beside the target alone, in turns.
        engine, runner, engine_args, data_dir: as for `run`.
        out: folder of the engine's log and of tune.json; None: results/tune.
        plot: file of a heat map to write as well, .png or .pdf.
        progress: whether to show progress on standard error. Otherwise nothing is printed.

    Raises:
        UserError: what was asked for is impossible.
    """
    directory = Path("results") / "tune" if out is None else Path(out)
    asked: dict[str, Any] = {
        "temperature": temperature, "max_tokens": max_tokens, "engine": engine, "runner": runner, "record": False,
        "engine_args": dict(engine_args or {}), "data_dir": None if data_dir is None else Path(data_dir),
        "batch": max(batches, default=1), "out": directory,
        "suite_names": [str(suite)] if suite else [] if target == "zoo" else ["mt_bench"],
    }  # fmt: skip
    bursting.check(batches, bursts, answers)
    if not engines.find(engine).replicates:
        raise UserError(f"--engine {engine}: engines are started and timed here: leave it out")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out {directory}: not a directory: name one, or a new one")
    if plot is not None:
        from speceval.show import plots

        plots.require_format(Path(plot))
    jobs = _jobs(target, drafts, ks, asked)
    try:
        with _told(len(jobs)) if progress else nullcontext(lambda _: None) as started:
            measured = bursting.measure(jobs, batches, bursts, answers, output_to, started, beside)
        rates = tuning.rates(measured)
        content = _content(target, temperature, measured, rates, jobs)
        if confirm:
            _confirm(content, rates, jobs)
    except KeyboardInterrupt:
        if progress:
            say("interrupted: tune keeps no timings; the same command starts again")
        raise
    write_whole(directory / bursting.RESULT, _text(versioned("tune", content)))
    if plot is not None:
        from speceval.show import tuning as shown

        plots.save(shown.heat_map(rates, measured.device, measured.runner), Path(plot))
    if progress:
        for path in (directory / bursting.RESULT, *([] if plot is None else [Path(plot)])):
            wrote(path)
    return Tuning(rates, content)


@contextmanager
def _told(number: int) -> Iterator[Callable[[Setting], None]]:
    """Says on standard error which of so many settings is begun."""
    with terminal() as console:
        done = 0

        def started(setting: Setting) -> None:
            nonlocal done
            name = "the target alone" if setting == ALONE else f"{setting.draft} K={setting.k}"
            console.print(f"[{min(done, number)}/{number}] {name}", markup=False, highlight=False)
            done += 1

        yield started


def _jobs(target: str, drafts: Sequence[str], ks: Sequence[int], asked: dict[str, Any]) -> dict[Setting, Job]:
    """Every drafter with every K that it can draft, fetched. Raises `UserError` for a drafter that can draft none of
    them, and for a K that was asked for and that no drafter can draft.
    """
    jobs: dict[Setting, Job] = {}
    errors: dict[Setting, UserError] = {}
    for setting in (Setting(draft, k) for draft in drafts for k in ks or range(1, MOST_K + 1)):
        try:
            jobs[setting] = fetch(prepare(target=target, draft=setting.draft, k=setting.k, long=False, **asked))
        except UserError as error:
            if ks and not isinstance(error, DoesNotFit):
                raise
            errors[setting] = error
    for setting, reason in errors.items():
        alone = not any(other.draft == setting.draft for other in jobs)
        if alone or (ks and not any(other.k == setting.k for other in jobs)):
            raise reason
    if not jobs:
        raise UserError("--draft: name a drafter")
    return dict(sorted(jobs.items(), key=lambda item: item[0].k))  # drafters of one K are exchanged


def _content(
    target: str, temperature: float, measured: Measured, rates: list[Rate], jobs: dict[Setting, Job]
) -> dict[str, Any]:
    best = [rate for rate in rates if rate.best]
    return {
        "target": target,
        "temperature": temperature,
        "suite": next(iter(jobs.values())).suites[0].name,
        "device": measured.device,
        "runner": measured.runner,
        "acceptance": measured.sources,
        "rates": [rate.as_json() for rate in rates],
        "best": [rate.as_json() | {"serve_with": _serve(rate, jobs)} for rate in best],
        "by_batch_size": _by_batch_size(rates, jobs),
        "stops_paying_at_batch": tuning.stops_paying(rates),
        "confirmed": [],
        "unconfirmed": [],
    }


def _serve(rate: Rate, jobs: dict[Setting, Job]) -> dict[str, Any]:
    """The engine's arguments for a setting; empty for the target alone."""
    if rate.setting not in jobs:
        return {}
    job = jobs[rate.setting]
    arguments = engines.find(job.spec.engine).serving(order(job))
    return arguments and arguments | {"max_num_seqs": rate.batch}


def _by_batch_size(rates: list[Rate], jobs: dict[Setting, Job]) -> dict[str, Any]:
    """Arguments of one engine whose K follows the batch size, of each drafter where that pays and the engine can."""
    found: dict[str, Any] = {}
    for draft in dict.fromkeys(setting.draft for setting in jobs):
        ranges = tuning.schedule(rates, draft)
        if len({k for *_, k in ranges}) < 2:
            continue
        job = jobs[Setting(draft, max(k for *_, k in ranges))]
        arguments = engines.find(job.spec.engine).serving(order(job), ranges) if bursting.nests(job) else {}
        if arguments:
            found[draft] = arguments | {"max_num_seqs": ranges[-1][1]}
    return found


def _confirm(content: dict[str, Any], rates: list[Rate], jobs: dict[Setting, Job]) -> None:
    """Time the best setting of each batch size beside the target alone."""
    for rate in (rate for rate in rates if rate.best and rate.setting in jobs):
        job = jobs[rate.setting]
        try:
            timed = timing.measure(job, [rate.batch], job.directory / "confirm.log")
        except UserError as error:
            content["unconfirmed"].append(f"batch {rate.batch}: {error}")
            continue
        row = speedup.summarise(timed)[job.suites[0].name][str(rate.batch)]
        content["confirmed"].append(
            {
                "batch": rate.batch,
                "draft": rate.setting.draft,
                "k": rate.setting.k,
                "predicted": {name: rate.as_json()[name] for name in ("tokens_per_second", "speedup")},
                "drafted_tokens_per_second": row["drafted_tokens_per_second"],
                "alone_tokens_per_second": row["alone_tokens_per_second"],
                "speedup": {name: row[name] for name in ("value", "low", "high")},
            }
        )


def _text(content: dict[str, Any]) -> str:
    import json

    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
