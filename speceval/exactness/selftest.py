"""The harness itself is measured: a run whose acceptance rates are known in advance must give them back.

vLLM's `rejection_sample_method="synthetic"` accepts draft position j, once it is reached, at a given rate whatever p
and q. Every acceptance is a coin of its own, so the numbers A of accepted drafts of the steps are independent and
identically distributed by construction, and binomial errors are right. What is tested, and why the number of steps
must be fixed in advance: docs/trust/is-the-count-right.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from speceval.errors import UserError
from speceval.estimate import acceptance
from speceval.store import REQUEST

if TYPE_CHECKING:
    from speceval.measure.job import Job
    from speceval.store import StoredRun

FALSE_ALARM = 1e-6
"""Chance that a sound harness fails one whole self-test, at most (Bonferroni over all its tests)."""
TEMPERATURES = (0.0, 1.0)
"""vLLM forces greedy and sampled requests alike, by two kernels."""
STEPS = 4000
"""Steps tested at each temperature."""
STEPS_PER_SAMPLE = 150
"""Steps that one sample of every prompt is sure to give; the rest of them goes to the books alone."""
FIRST_SEED = 10_000
"""Seeds of its own: vLLM's V2 runner draws by seed and position alone, so that runs of equal seeds share coins."""
SUITE, MAX_TOKENS, BATCH = "demo", 64, 256


@dataclass(frozen=True)
class Check:
    """One thing that must hold. `p_value` None: an exact identity."""

    quantity: str
    forced: float | None
    measured: float | None
    trials: int
    p_value: float | None
    passed: bool
    detail: str = ""


def default_rates(k: int) -> tuple[float, ...]:
    """u_1 … u_K evenly spread over (0, 1): 0.9, 0.7, 0.5, 0.3, 0.1 for K = 5. All positions are reached often."""
    return tuple(round((k - j + 0.5) / k, 6) for j in range(1, k + 1))


def rates_of_tau(tau: float, k: int) -> tuple[float, ...]:
    """The rates that vLLM makes of a length: full positions first (`_acceptance_length_to_rates`, vllm/config/
    speculative.py). Raises UserError for lengths outside 1 … K + 1.
    """
    if not 1 <= tau <= k + 1:
        raise UserError(f"--tau {tau:g}: a step of K={k} drafts emits 1 to {k + 1} tokens: give a length between")
    return tuple(min(1.0, max(0.0, tau - j)) for j in range(1, k + 1))


def check_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """`rates` if they are P(A >= j) of positions 1 … K; raises UserError with one line otherwise."""
    text = ",".join(f"{rate:g}" for rate in rates)
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise UserError(f"--rates {text}: each is a share of all steps, from 0 to 1")
    if any(b > a for a, b in pairwise(rates)):
        raise UserError(f"--rates {text}: a position is never accepted more often than the one before it: sort them")
    return tuple(rates)


def conditional(rates: Sequence[float]) -> tuple[float, ...]:
    """c_j = u_j / u_{j-1}, with u_0 = 1; 0 where a position is never reached."""
    return tuple(u / before if before else 0.0 for u, before in zip(rates, [1.0, *rates[:-1]], strict=True))


def prepare(
    target: str, draft: str, temperature: float, rates: Sequence[float], samples: int, directory: Path, **options: Any
) -> Job:
    """A run of the demo's prompts with forced `rates`, `samples` times each. Raises UserError."""
    from speceval.catalog.methods import find
    from speceval.measure.job import prepare

    job = prepare(
        target=target,
        draft=draft,
        temperature=temperature,
        suite_names=[SUITE],
        k=len(rates),
        seeds=tuple(range(FIRST_SEED, FIRST_SEED + samples)),
        max_tokens=MAX_TOKENS,
        record=False,
        out=directory / f"T{temperature:g}",
        **{"batch": BATCH, **options},
    )
    if find(job.draft.method).deterministic:
        raise UserError(f"--draft {draft}: drafts nothing in some steps: name a drafter that always drafts K tokens")
    return replace(job, spec=job.spec.model_copy(update={"rejection": "synthetic"}), forced=tuple(rates))


def run(jobs: Sequence[Job], steps: int, measure: Callable[[Job], StoredRun]) -> dict[str, Any]:
    """Measure the `jobs` (equal but for the temperature) and judge them: the report, JSON-ready.

    `steps`: how many of each run's steps are tested, fixed before it. Raises UserError when a run has fewer.
    """
    from speceval.measure.record import FORCED

    rates = jobs[0].forced
    assert rates is not None
    level = FALSE_ALARM / (tests(len(rates)) * len(jobs))
    conditions: list[dict[str, Any]] = []
    for job in jobs:
        stored = measure(job)
        problems = [problem for problem in stored.meta.problems if problem != FORCED]
        engine = stored.meta.fingerprint.engine
        if engine.rejection_sample_method != "synthetic":
            problems.append(f"the engine verified by {engine.rejection_sample_method}, not by forced rates")
        checks = judge(stored.steps, stored.turns, problems, rates, steps, level)
        conditions.append(
            {
                "temperature": job.spec.temperature,
                "tested_steps": steps,
                "all_steps": len(acceptance.drafted_steps(stored.steps)),
                "requests": len(stored.turns),
                "seconds": round(stored.meta.engine_seconds, 2),
                "engine": engine.model_dump(include={"vllm", "device", "runner", "method"}),
                "checks": [asdict(check) for check in checks],
            }
        )
    failed = [
        f"{check['quantity']} at T={condition['temperature']:g}"
        for condition in conditions
        for check in condition["checks"]
        if not check["passed"]
    ]
    return {
        "ok": not failed,
        "verdict": verdict(failed),
        "target": jobs[0].spec.target,
        "draft": jobs[0].spec.draft,
        "k": len(rates),
        "rates": list(rates),
        "conditional": list(conditional(rates)),
        "tau": 1 + sum(rates),
        "false_alarm": FALSE_ALARM,
        "level": level,
        "seeds": len(jobs[0].spec.seeds),
        "conditions": conditions,
    }


def verdict(failed: Sequence[str]) -> str:
    """One line."""
    if not failed:
        return "the harness gives the forced rates back"
    return f"the harness does NOT give the forced rates back: {', '.join(failed)}"


def tests(k: int) -> int:
    """Number of statistical tests of one run: u_1 … u_K, c_2 … c_K, tau, tau_paper."""
    return 2 * k + 1


def judge(
    steps: pd.DataFrame,
    turns: pd.DataFrame,
    problems: Sequence[str],
    rates: Sequence[float],
    planned: int,
    level: float,
) -> list[Check]:
    """Every check of one run's tables against the forced u_1 … u_K (`rates`).

    The first `planned` steps, in the order of the table, are tested, each test at `level`; `problems` are what does not
    balance in the run's books. Raises UserError when there are fewer steps.
    """
    k = len(rates)
    rows = acceptance.drafted_steps(steps)
    if len(rows) < planned:
        raise UserError(f"only {len(rows)} steps came, {planned} are to be tested: ask for more --samples")
    first = rows.head(planned)
    return [
        *_position_checks(first, rates, level),
        _length_check("tau", acceptance.tau(first), rates, planned, level),
        _length_check("tau_paper", acceptance.tau_paper(first, k), rates, planned, level),
        *_identities(steps, turns, k),
        Check("books and counters", None, None, len(turns), None, not problems, "; ".join(problems)),
    ]


def _position_checks(first: pd.DataFrame, rates: Sequence[float], level: float) -> list[Check]:
    """Exact binomial tests of the estimators' counts at each position."""
    found = []
    counts = acceptance.positions(first, len(rates)).to_dict("records")
    for row, rate, chance in zip(counts, rates, conditional(rates), strict=True):
        j, accepted = row["position"], int(row["accepted"])
        found.append(_binomial_check(f"u_{j}", accepted, int(row["drafted"]), rate, level))
        if j > 1:
            found.append(_binomial_check(f"c_{j}", accepted, int(row["reached"]), chance, level))
    return found


def _binomial_check(quantity: str, accepted: int, trials: int, rate: float, level: float) -> Check:
    if not trials:
        return Check(quantity, rate, None, 0, 1.0, True, "never reached")
    p_value = float(binomtest(accepted, trials, rate).pvalue)
    return Check(quantity, rate, accepted / trials, trials, p_value, p_value >= level)


def _length_check(quantity: str, measured: float | None, rates: Sequence[float], trials: int, level: float) -> Check:
    assert measured is not None
    p_value = sum_p_value((measured - 1) * trials, trials, rates)
    return Check(quantity, 1 + sum(rates), measured, trials, p_value, p_value >= level)


def sum_p_value(total: float, trials: int, rates: Sequence[float]) -> float:
    """Two-sided p-value of Σ A = `total` over `trials` independent steps with P(A >= j) = rates[j-1].

    Twice the smaller tail of the sum's exact law, the `trials`-fold convolution of A's (by Fourier transform; absolute
    error below 1e-12).
    """
    law = -np.diff([1.0, *rates, 0.0])
    size = trials * len(rates) + 1
    sums = np.clip(np.fft.irfft(np.fft.rfft(law, size) ** trials, size), 0, 1)
    values = np.arange(size)
    near = 1e-6  # a length is a quotient: its numerator comes back with rounding errors
    tails = sums[values <= total + near].sum(), sums[values >= total - near].sum()
    return float(min(1.0, 2 * min(tails)))


def _identities(steps: pd.DataFrame, turns: pd.DataFrame, k: int) -> list[Check]:
    """What must hold to the last digit, in all steps."""
    rows = acceptance.drafted_steps(steps)
    other = int((rows["drafted"] != k).sum()) + len(steps) - len(rows) + int(turns["padded_steps"].sum())
    tau, committed = acceptance.tau(steps), acceptance.tau_committed(steps)
    assert tau is not None and committed is not None
    past = float((1 + rows["accepted"] - rows["committed"]).sum() / len(rows))
    by_request = rows.groupby(REQUEST, sort=False)["accepted"].mean().mean()
    return [
        Check("K drafts in every step", 0, other, len(steps), None, other == 0, f"{other} steps with another number"),
        _equal("tau_committed", tau - past, committed, len(rows)),
        _equal("tau_request_mean", 1 + float(by_request), acceptance.tau_request_mean(turns), len(turns)),
    ]


def _equal(quantity: str, expected: float, measured: float | None, trials: int) -> Check:
    passed = measured is not None and abs(expected - measured) < 1e-9
    return Check(quantity, expected, measured, trials, None, passed)
