"""One verification: start the engine, draw, compute the target's probabilities, test."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from speceval import catalog, engines
from speceval.engines import alone
from speceval.engines.base import Engine, Verifiable
from speceval.errors import UserError
from speceval.exactness.checks import CELLS, exact_checks, planned, two_sample_checks
from speceval.exactness.draw import Continuations, Plan, draw
from speceval.exactness.law import detectable
from speceval.exactness.reference import Reference, Tokens
from speceval.exactness.verdict import ALPHA, Report
from speceval.measure import launch
from speceval.measure.job import Job
from speceval.measure.output import gone_if_refused
from speceval.measure.start import check_settings, order, start_engine

Mode = Literal["auto", "exact", "two-sample"]
Tell = Callable[[str, int, int], None]
"""Told of progress: stage, done, and of how many; of none: a line that stays."""

LOG = "engine.log"
STARTING = "starting the engine"
"""A stage of a verification."""
PROMPTS = ("The capital of", "Once upon a time there was a", "def add(a, b):\n    return")
"""Fixed prompts of different lengths, so that requests do not move in step."""
LEAST_TOKENS = 8
SAMPLES: dict[Mode, int] = {"exact": 20_000, "two-sample": 60_000}
"""Continuations by default: enough to see a bias of 0.02 and say *exact*, of two samples with both their noises."""
LOCAL = "vllm"
"""The engine that draws from the target alone where the one that is verified is a server."""
EXACT_VOCABULARY = 4096
"""Largest vocabulary whose probabilities are computed by default."""
AGREEMENT = 0.01
"""Most that two exact float32 implementations of the target may differ by in a token's log-probability."""


@dataclass(frozen=True)
class Settings:
    """What to draw and how to judge it.

    `samples` None: as `SAMPLES` says; `tokens` None: a full step and the start of the next, at least LEAST_TOKENS.
    """

    samples: int | None = None
    tokens: int | None = None
    prompts: tuple[str, ...] = PROMPTS
    seeded: bool = False
    greedy_share: float = 0.0
    reference: Mode = "auto"
    bias: float = 0.02
    seed: int = 0

    def check(self) -> None:
        """Raises `UserError` naming the flag of a value that makes no sense."""
        least = max(100, 20 * len(self.prompts))
        for wrong, line in (
            (
                self.samples is not None and self.samples < least,
                f"--samples {self.samples}: at least {least} for {len(self.prompts)} prompts",
            ),
            (
                self.tokens is not None and self.tokens < 2,
                f"--n-tokens {self.tokens}: at least 2, for the first is not speculative",
            ),
            (not self.prompts or not all(self.prompts), "--prompt: empty"),
            (not 0 <= self.greedy_share < 1, f"--greedy-share {self.greedy_share:g}: from 0 to below 1"),
            (not 0 < self.bias < 1, f"--bias {self.bias:g}: between 0 and 1"),
        ):
            if wrong:
                raise UserError(line)
        if self.greedy_share and self.reference == "two-sample":
            raise UserError("--greedy-share: greedy requests are checked against exact probabilities only")


def verify(
    job: Job,
    settings: Settings,
    directory: Path,
    tell: Tell,
    log: Callable[[Path], AbstractContextManager[None]],
) -> Report:
    """Verify the engine that `job` asks for; a missing patch is reported, not refused. Raises `UserError`.

    The engine's own output goes to `directory`/engine.log.
    """
    settings.check()
    if job.spec.temperature <= 0:
        raise UserError("--temp 0: greedy decoding samples nothing; verify it at a temperature above 0")
    job = launch.fetch(job)
    if remote(job):  # its law is computed from the checkpoint that is here
        job = replace(job, target=catalog.fetch(catalog.Pair(target=job.target, draft=None)).target)
    tell(cost(job, settings), 0, 0)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / LOG
    seconds = Stopwatch()
    with log(file), gone_if_refused(file, directory / "verify.json"):
        baseline = None
        if _mode(job, settings) == "two-sample":
            tell("drawing without speculation", 0, 1)
            plan = plan_for(job, settings, _encode(job, settings.prompts), "two-sample")
            baseline = _draw_alone(job, plan, file)
            seconds.lap("baseline")
        tell(STARTING, 0, 1)
        with closing(start_engine(job)) as engine:
            seconds.lap("start")
            return examine(engine, job, settings, tell, baseline, seconds)


def examine(
    engine: Engine,
    job: Job,
    settings: Settings,
    tell: Tell,
    baseline: Sequence[Tokens] | None = None,
    seconds: Stopwatch | None = None,
) -> Report:
    """Draw from a running engine and test; may be called again and again on one engine."""
    seconds = seconds or Stopwatch()
    facts, k = engine.facts(), job.spec.k
    if engine.knows_settings:
        check_settings(facts, job.spec)
    prompts = [engine.tokenizer.encode(text) for text in settings.prompts]
    plan = plan_for(job, settings, prompts, "exact" if baseline is None else "two-sample")
    found = draw(engine, plan, lambda done, total: tell("drawing", done, total))
    seconds.lap("draw")
    alpha = ALPHA / planned(k, plan.tokens)
    if baseline is None:
        tell("computing the target's probabilities", 0, 1)
        reference = Reference(job.target.model, job.target.revision)
        difference = 0.0
        if isinstance(engine, Verifiable) or not remote(job):
            difference = _check_reference(engine, reference, plan, found)
        checks = exact_checks(plan, found, reference, k, alpha, difference)
        kind = "exact probabilities"
    else:
        checks = two_sample_checks(plan, found, baseline, alpha)
        kind = "two samples"
    seconds.lap("test")
    counts = found.counts | {"steps_without_drafts": found.undrafted}
    return Report(
        settings=asdict(settings) | job.spec.model_dump(mode="json") | {"tokens": plan.tokens, "samples": plan.samples},
        engine=facts.model_dump(),
        missing=engine.missing_patches(),
        reference=kind,
        checks=checks,
        alpha=alpha,
        bias=settings.bias,
        counts=counts,
        rows_tested=found.recorded is not None,
        seconds=seconds.laps,
    )


def cost(job: Job, settings: Settings) -> str:
    """What a verification draws and what it could see at best, for who may want another size before it starts."""
    mode = _mode(job, settings)
    plan = plan_for(job, settings, [[0]] * len(settings.prompts), mode)
    vocabulary = job.target.sizes.vocab_size or 0
    each = plan.samples * (plan.tokens - 1) / (1 if mode == "exact" else 2)
    cells = min(vocabulary or CELLS, CELLS)
    best = detectable(max(cells - 1, 1), each, ALPHA / planned(job.spec.k, plan.tokens))
    other = "as many by the target alone first" if mode == "two-sample" else "then the target's own probabilities"
    return (
        f"{plan.samples:,} continuations of up to {plan.tokens} tokens of {len(plan.prompts)} prompts "
        f"({plan.samples * plan.tokens:,} tokens, {job.spec.batch} requests at once), {other}; sees a bias from "
        f"{best:.2g} at best (--bias {settings.bias:g})"
    )


def plan_for(job: Job, settings: Settings, prompts: Sequence[Sequence[int]], mode: Mode) -> Plan:
    """What to draw for `job`. Raises `UserError` for a prompt without tokens."""
    if not all(prompts):
        raise UserError("--prompt: a prompt has no tokens")
    spec = job.spec
    return Plan(
        prompts=prompts,
        samples=settings.samples or SAMPLES[mode],
        tokens=settings.tokens or max(spec.k + 4, LEAST_TOKENS),
        temperature=spec.temperature,
        top_k=spec.top_k,
        top_p=spec.top_p,
        seeded=settings.seeded,
        greedy_share=settings.greedy_share,
        seed=settings.seed,
    )


class Stopwatch:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """What passed since the last lap belongs to `stage`."""
        now = time.monotonic()
        self.laps[stage] = round(now - self._last, 2)
        self._last = now


def _mode(job: Job, settings: Settings) -> Mode:
    if settings.reference != "auto":
        return settings.reference
    float32 = remote(job) or job.spec.engine_args.get("dtype") == "float32"
    exact = float32 and 0 < (job.target.sizes.vocab_size or 0) <= EXACT_VOCABULARY
    if settings.greedy_share and not exact:
        raise UserError("--greedy-share needs exact probabilities: --reference exact and --engine-arg dtype=float32")
    return "exact" if exact else "two-sample"


def remote(job: Job) -> bool:
    """Whether the engine runs elsewhere: a server."""
    return job.spec.engine == "server"


def _encode(job: Job, texts: Sequence[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(job.target.model, revision=job.target.revision)
    except (OSError, ValueError) as error:
        raise UserError(f"the tokenizer of {job.target.name} cannot be read: {str(error).splitlines()[0]}") from error
    return [tokenizer.encode(text) for text in texts]


def _draw_alone(job: Job, plan: Plan, log: Path) -> list[Tokens]:
    """As many continuations of the same prompts as `plan` draws, by the target alone and with other randomness."""
    requests = [(plan.prompts[plan.prompt(i)], replace(plan.sampling(i), seed=None)) for i in range(plan.samples)]
    asked = replace(order(job), seed=plan.seed + 1)
    if remote(job):
        asked = replace(asked, engine=LOCAL, engine_args=engines.find(LOCAL).defaults(job.target))
    return alone.draw(asked, requests, log)


def _check_reference(engine: Engine, reference: Reference, plan: Plan, found: Continuations) -> float:
    """Largest difference of log-probabilities in a few sequences: the reference must be the engine's own target."""
    import numpy as np

    few = {plan.prompt(i): i for i in range(min(plan.samples, 4 * len(plan.prompts)))}
    sequences = [[*plan.prompts[prompt], *found.tokens[i]] for prompt, i in few.items()]
    if not isinstance(engine, Verifiable):
        raise UserError("this engine tells no log-probabilities: use --reference two-sample")
    theirs = engine.log_probabilities(sequences)
    worst = 0.0
    for sequence, scores in zip(sequences, theirs, strict=True):
        _, logits = next(reference.logits(sequence[:1], [tuple(sequence[1:])]))
        logits = logits[0].astype(float)
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        ours = logs[np.arange(len(scores)), sequence[1:]]
        worst = max(worst, float(np.abs(ours - np.array(scores)).max()))
    if not worst < AGREEMENT:
        raise UserError(
            f"transformers and vLLM disagree by {worst:.3g} about a log-probability (limit {AGREEMENT:g}): "
            "no exact test is possible; use --reference two-sample, or --engine-arg dtype=float32"
        )
    return worst
