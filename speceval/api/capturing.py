"""`speceval.capture`, `speceval.replay` and `speceval.evaluate`: drafters measured without their target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.jupyter import JupyterMixin

from speceval.api.results import Estimate, Run
from speceval.api.words import errors_by_parameter
from speceval.captures.folder import Capture
from speceval.captures.storage import Dtype
from speceval.errors import UserError
from speceval.measure.output import output_to, terminal, unwatched
from speceval.measure.starting import Starting
from speceval.protocol import Drafting
from speceval.show import progress as display
from speceval.store import StoredRun
from speceval.terminal import say

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from speceval.drafters.base import Drafter


@errors_by_parameter()
def capture(
    run: str | Path | StoredRun,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    dtype: Dtype | None = None,
    data_dir: str | Path | None = None,
    batch: int | None = None,
    progress: bool = False,
) -> Capture:
    """Read a run's texts once with its target and keep what drafters need to know, as `speceval capture` does.

    Args:
        run: finished run whose texts are read.
        out: folder to write; the same call goes on with an unfinished one.
        layers: inner layers whose residual streams are kept; None: those that the run's drafter reads.
        dtype: how states are stored ("float8": eight bits and a scale for each); None: what the target computes in.
        data_dir: folder with the suites' data files.
        batch: requests that the engine reads at once; None: the run's.
        progress: whether to show progress on standard error.

    Raises:
        UserError: the run, its target or its prompts are not what they were, or the engine keeps no states.
    """
    directory = run.directory if isinstance(run, StoredRun) else Path(run)
    return captured(directory, Path(out), layers, dtype, None if data_dir is None else Path(data_dir), batch, progress)


@errors_by_parameter()
def replay(
    capture: str | Path | Capture,
    draft: str,
    *,
    k: int | None = None,
    drafting: Literal["probabilistic", "greedy"] | None = None,
    draft_truncation: bool = True,
    method: str | None = None,
    draft_args: Mapping[str, Any] | None = None,
    device: str = "cpu",
    out: str | Path | None = None,
    progress: bool = False,
) -> Run:
    """Measure a drafter on a capture without the target, as `speceval replay` does: a replayed run, exact on its texts.

    Args:
        capture: folder, or what `read_capture` returns.
        draft: catalog name, directory or hub id of a drafter whose files are here, or "ngram".
        k: draft tokens of a step; None: the drafter's own.
        drafting: None: "probabilistic" above temperature 0, else "greedy".
        draft_truncation: whether top-k and top-p truncate the drafter's distribution as they do the target's.
        method: drafting method, for a checkpoint that does not tell its own.
        draft_args: of n-gram drafting: prompt_lookup_min, prompt_lookup_max.
        device: where the drafter computes.
        out: the run's directory; None: `results/` and a name made of the request.
        progress: whether to show progress on standard error.

    Raises:
        UserError: the drafter does not fit the capture, or is of a method that is not computed here.
    """
    found = replayed(
        capture,
        draft,
        k=k,
        drafting=drafting,
        draft_truncation=draft_truncation,
        method=method,
        draft_args=dict(draft_args or {}),
        device=device,
        out=None if out is None else Path(out),
        progress=progress,
        command=("python", "-c", f"import speceval; speceval.replay({str(_place(capture))!r}, {draft!r}, …)"),
    )
    return Run.of(found)


@errors_by_parameter()
def read_capture(directory: str | Path) -> Capture:
    """A capture, open for reading. Raises `UserError` for what is none, or is not whole."""
    return Capture(Path(directory))


@dataclass(frozen=True)
class Evaluation(JupyterMixin):
    """The exact acceptance of a drafter along a capture's texts."""

    steps: pd.DataFrame
    """A row for each place: suite, conversation, seed, turn, step, drafted, kept_1 … kept_K."""
    k: int
    alpha: list[float] | None = None
    """Mean of Σ_x min(p, q) by draft position, over all places; where `overlap` was asked for."""
    kl: list[float] | None = None
    """Mean of KL(p || q) in nats, with p renormalised on what the drafter can draft; likewise."""

    @property
    def suites(self) -> list[str]:
        """Names."""
        return list(dict.fromkeys(self.steps["suite"]))

    def tau(self, suite: str = "") -> Estimate:
        """tau_committed: exact on these texts; the interval is for prompts like these, by conversation."""
        from speceval.estimate.statistics import ratio_interval

        totals = self.conversations(suite)
        return Estimate.of(ratio_interval(totals["committed"], totals["steps"], bounds=(1, self.k + 1)))

    def positions(self, suite: str = "") -> list[Estimate]:
        """The share of expected steps that accept draft position 1 … K, of drafts within the text."""
        from speceval.estimate import replay
        from speceval.estimate.statistics import ratio_interval

        sums = replay.position_totals(self._of(suite))
        return [Estimate.of(ratio_interval(each["accepted"], each["drafted"], bounds=(0, 1))) for each in sums]

    def conversations(self, suite: str = "") -> pd.DataFrame:
        """Expected steps and the tokens committed in them, and their ratio `tau`, by conversation."""
        from speceval.estimate import replay

        totals = replay.conversation_totals(self._of(suite))
        return totals.assign(tau=totals["committed"] / totals["steps"])

    def __repr__(self) -> str:
        taus = "; ".join(f"{name}: tau_committed {self.tau(name)}" for name in self.suites)
        return f"<evaluation, K={self.k}: {taus}>"

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table("suite", "tau_committed", *(f"u_{j}" for j in range(1, self.k + 1)))
        for name in self.suites:
            table.add_row(name, str(self.tau(name)), *(f"{rate:3}" for rate in self.positions(name)))
        return table

    def _of(self, suite: str) -> pd.DataFrame:
        if suite not in self.suites and (suite or len(self.suites) != 1):
            raise UserError(f"suite {suite!r}: there are {', '.join(self.suites)}: name one of them")
        return self.steps[self.steps["suite"] == (suite or self.suites[0])].reset_index(drop=True)


@errors_by_parameter()
def evaluate(
    drafter: Drafter | Callable[..., Any],
    capture: str | Path | Capture,
    k: int,
    temperature: float | None = None,
    *,
    drafting: Literal["probabilistic", "greedy"] | None = None,
    draft_ids: Sequence[int] | torch.Tensor | None = None,
    overlap: bool = False,
    device: str = "cpu",
) -> Evaluation:
    """The exact acceptance of any drafter along a capture's texts: a training loop can call it after each epoch.

    Args:
        drafter: called with `tokens` [batch, time] (int64), `states` (`final` and `layers[n]`, each [batch, time,
            hidden], `embedding` and `output` [vocabulary, hidden], float32) and `places` [batch, n]; gives logits
            [K, batch, n, D], or an iterator of [batch, n, D]: entry j - 1 predicts token `places + j + 1` and may read
            the tokens up to `places + j` and the states up to `places`. K tokens and more follow every place. A
            `torch.nn.Module` is evaluated as if `eval()` had been called.
        capture: folder, or what `read_capture` returns.
        k: draft positions.
        temperature: None: that of the texts, which is the only one that they have the law of.
        drafting: None: "probabilistic" above temperature 0, else "greedy".
        draft_ids: the target's ids [D] of what it can draft; None: its attribute of that name, or 0 … D - 1.
        overlap: whether to compute Σ_x min(p, q) and KL(p || q) too, which takes the target's output map at each place.
        device: where to compute.

    Raises:
        UserError: another temperature than the texts', another vocabulary, fewer positions than K.
    """
    import torch as backend

    from speceval.captures import evaluate as evaluating
    from speceval.catalog.methods import default_drafting

    found = capture if isinstance(capture, Capture) else Capture(Path(capture))
    evaluating.require(k, device)
    if not callable(drafter):
        raise UserError(f"drafter: {drafter!r} is no function: `speceval.replay` measures names and checkpoints")
    if drafting not in (None, "probabilistic", "greedy"):
        raise UserError(f"drafting={drafting}: probabilistic or greedy")
    if temperature is not None and temperature != found.sampling.temperature:
        raise UserError(
            f"temperature={temperature}: the texts were sampled at {found.sampling.temperature:g}: capture a run at "
            "that temperature"
        )
    if not any(text.places for text in found.texts):
        raise UserError(f"{found.directory}: no text has a second token: there is nothing to draft")
    mode: Drafting = drafting or default_drafting("draft_model", found.sampling.temperature)
    question = evaluating.Question(k, mode, found.sampling, device=device)
    sums = evaluating.Overlap() if overlap else None
    with backend.no_grad(), _at_work(drafter):
        kept = list(evaluating.along(drafter, found, question, draft_ids, sums))
    means = [] if sums is None else [_means(values, sums.places) for values in (sums.alpha, sums.kl)]
    return Evaluation(evaluating.table(kept, k), k, *means)


@contextmanager
def _at_work(drafter: Any) -> Iterator[None]:
    """A module that is being trained drops nothing out meanwhile."""
    from torch.nn import Module

    training = [part for part in drafter.modules() if part.training] if isinstance(drafter, Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _means(sums: list[float], counts: list[int]) -> list[float]:
    return [value / count for value, count in zip(sums, counts, strict=True)]


def captured(
    run: Path,
    out: Path,
    layers: Sequence[int] | None,
    dtype: str | None,
    data_dir: Path | None,
    batch: int | None,
    progress: bool,
) -> Capture:
    """Capture a run; `progress`: on standard error."""
    from speceval.captures import write

    plan = write.prepare(run, out, layers, cast("Dtype | None", dtype), data_dir, batch)
    if not progress:
        return write.capture(plan, unwatched, output_to)
    with terminal() as console:
        console.print(f"capture: {plan.line()}", markup=False, soft_wrap=True)
        starting = Starting(console, plan.run.meta.spec.engine)

        def log(path: Path) -> AbstractContextManager[None]:
            return starting.log(path)

        return write.capture(plan, starting.until(display.watcher(console)), log)


def replayed(capture: str | Path | Capture, draft: str, progress: bool = False, **options: Any) -> StoredRun:
    """Measure one drafter on a capture; `progress`: on standard error."""
    from speceval.captures.replay import replay as measure

    found = capture if isinstance(capture, Capture) else Capture(Path(capture))
    if progress:
        say(f"{draft} on {found.directory}: {len(found.texts):,} texts")
    return measure(found, draft, **options)


def _place(capture: str | Path | Capture) -> Path:
    return capture.directory if isinstance(capture, Capture) else Path(capture)
