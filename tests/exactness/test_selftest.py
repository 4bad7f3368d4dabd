"""The self-test passes on a sound harness and fails on each of the mistakes that it is there to catch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from speceval import store
from speceval.engines.base import Finished, Step
from speceval.engines.simulated import SimulatedEngine
from speceval.errors import UserError
from speceval.estimate.identities import check_counters, reconcile
from speceval.exactness import selftest
from speceval.measure import launch, record
from speceval.measure.job import Job, prepare
from speceval.measure.runner import Progress, Template, measure
from speceval.measure.start import order
from speceval.protocol import make_spec
from speceval.show import tables
from speceval.store.schema import OUTPUTS
from speceval.suites import Conversation, Suite

ROOT = Path(__file__).resolve().parents[2]
RATES = (0.9, 0.7, 0.5, 0.3, 0.1)
K = len(RATES)
STEPS = 2000
LEVEL = selftest.FALSE_ALARM / (2 * selftest.tests(K))


def failed(checks: list[selftest.Check]) -> list[str]:
    return [check.quantity for check in checks if not check.passed]


def simulated(directory: Path, change: Callable[[Finished], Finished] = lambda finished: finished) -> list[str]:
    """What fails when the whole harness runs on the simulated engine, whose reports `change` tampers with."""

    class Engine(SimulatedEngine):
        def step(self) -> tuple[int, list[Finished]]:
            committed, finished = super().step()
            return committed, [change(replace(result, recorded=None)) for result in finished]

    conversations = [Conversation(f"{i:02}", "c", [f"question {i}"]) for i in range(24)]
    suite = Suite("s", 1, "hash", conversations, 60, None, "{prompt}", "made here")
    spec = make_spec(
        target="t", draft="d", k=K, temperature=1.0, drafting="probabilistic", suites=("s",), seeds=tuple(range(30))
    )
    engine = Engine(selftest.conditional(RATES), end=0.03)
    with store.Store(directory) as opened:
        segment = measure(engine, spec, [suite], Template({}, None), opened, Progress(24 * 30), lambda: None)
        turns, steps = opened.frames()
    problems = reconcile(steps, turns)
    problems += check_counters(steps, asdict(segment.counters))
    return failed(selftest.judge(steps, turns, problems, RATES, STEPS, LEVEL))


def shifted(finished: Finished) -> Finished:
    """Every step gets the record of the step after it."""
    steps = finished.steps
    moved = [Step(b.drafted, b.accepted, a.committed) for a, b in zip(steps, steps[1:] + steps[:1], strict=True)]
    return replace(finished, steps=moved)


def without_last(finished: Finished) -> Finished:
    return replace(finished, steps=finished.steps[:-1])


def with_bonus(finished: Finished) -> Finished:
    steps = [replace(step, accepted=min(step.accepted + 1, K)) for step in finished.steps]
    return replace(finished, steps=steps)


def test_a_sound_harness_gives_the_forced_rates_back(tmp_path: Path) -> None:
    assert simulated(tmp_path) == []


@pytest.mark.parametrize("change", [shifted, without_last, with_bonus])
def test_a_harness_with_a_mistake_is_caught_by_its_books(tmp_path: Path, change: Any) -> None:
    assert "books and counters" in simulated(tmp_path, change)


def test_records_of_another_step_break_the_link_of_accepted_and_committed(tmp_path: Path) -> None:
    """The rates alone cannot see it: a request's records are all there, in another order."""
    found = simulated(tmp_path, shifted)
    assert not [name for name in found if name.startswith(("u_", "c_"))]


def drawn(rng: np.random.Generator, rates: tuple[float, ...] = RATES, steps: int = STEPS) -> np.ndarray:
    """Accepted drafts of independent steps."""
    coins = rng.random((steps, len(rates))) < np.array(selftest.conditional(rates))
    return coins.cumprod(1).sum(1)


def frames(accepted: np.ndarray, k: int = K) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One request of these steps, its books in order."""
    request = {"suite": "s", "conversation": "c", "seed": 0, "turn": 1}
    number = np.arange(1, len(accepted) + 1)
    steps = pd.DataFrame({**request, "step": number, "drafted": k, "accepted": accepted, "committed": accepted + 1})
    turn = {**request, "steps": len(accepted), "padded_steps": 0, "accepted": int(accepted.sum())}
    return steps, pd.DataFrame([turn])


def statistics_alone(accepted: np.ndarray, rates: tuple[float, ...] = RATES, level: float = LEVEL) -> list[str]:
    return failed(selftest.judge(*frames(accepted, len(rates)), [], rates, len(accepted), level))


@pytest.mark.parametrize(
    ("mistake", "seen_in"),
    [
        (lambda a: np.minimum(a + 1, K), {"u_1", "u_2", "u_3", "u_4", "u_5", "tau", "tau_paper"}),
        (lambda a: np.maximum(a - 1, 0), {"u_1", "u_2", "u_3", "u_4", "u_5", "tau", "tau_paper"}),
        (lambda a: a[a > 0], {"u_1"}),
        (lambda a: np.where(a == K, K - 1, a), {"u_5", "c_5"}),
        (lambda a: np.where((a == 2) & (np.arange(len(a)) % 2 == 0), 3, a), {"u_3", "c_3"}),
    ],
    ids=["bonus counted", "positions off by one", "steps without acceptance lost", "last position lost", "one rate"],
)
def test_mistakes_that_balance_are_caught_by_the_rates(mistake: Any, seen_in: set[str]) -> None:
    """Ten draws of 2,000 steps: all caught, each time in the quantities named."""
    for seed in range(10):
        found = statistics_alone(mistake(drawn(np.random.default_rng(seed))))
        assert seen_in <= set(found)


def test_a_rate_that_is_off_by_six_points_is_seen() -> None:
    """Power at u_3 = 0.56 in place of 0.5, 4,000 steps, the shipped level: over 47 of 50."""
    rates = (0.9, 0.7, 0.56, 0.3, 0.1)
    caught = sum("u_3" in statistics_alone(drawn(np.random.default_rng(seed), rates, 4000)) for seed in range(50))
    assert caught > 47


def test_a_sound_harness_fails_no_more_often_than_stated() -> None:
    """At 5 % overall, in place of 1e-6, 100 draws: at most 5 expected; 20 have a chance below 1e-6."""
    level = 0.05 / selftest.tests(K)
    alarms = sum(
        bool(statistics_alone(drawn(np.random.default_rng(seed), steps=500), level=level)) for seed in range(100)
    )
    assert alarms < 20


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.0, 0.0), (1.0, 0.5), (0.3,)], ids=str)
def test_rates_at_the_limits_are_judged(rates: tuple[float, ...]) -> None:
    accepted = drawn(np.random.default_rng(0), rates)
    assert statistics_alone(accepted, rates) == []
    assert "u_1" in statistics_alone(len(rates) - accepted if rates[0] != 0.3 else 1 - accepted, rates)


def test_the_sum_s_law_is_that_of_all_outcomes() -> None:
    rates, trials = (0.7, 0.2), 5
    chance = {0: 0.3, 1: 0.5, 2: 0.2}
    law = np.zeros(2 * trials + 1)
    for outcome in product(chance, repeat=trials):
        law[sum(outcome)] += np.prod([chance[a] for a in outcome])
    for total in range(2 * trials + 1):
        expected = min(1.0, 2 * min(law[: total + 1].sum(), law[total:].sum()))
        assert selftest.sum_p_value(total, trials, rates) == pytest.approx(expected, abs=1e-12)


def test_rates_of_a_length_and_of_a_number_of_positions() -> None:
    assert selftest.default_rates(5) == RATES
    assert selftest.rates_of_tau(2.5, 3) == pytest.approx((1.0, 0.5, 0.0))
    assert selftest.rates_of_tau(1, 2) == (0, 0) and selftest.rates_of_tau(3, 2) == (1, 1)
    assert selftest.conditional((1.0, 0.5, 0.0, 0.0)) == (1.0, 0.5, 0.0, 0.0)


@pytest.mark.parametrize("rates", [(), (1.1,), (-0.1,), (0.2, 0.3)], ids=str)
def test_rates_that_no_step_can_have_are_bad_input(rates: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="--rates"):
        selftest.check_rates(rates)


def test_too_few_steps_are_no_verdict() -> None:
    steps, turns = frames(drawn(np.random.default_rng(0), steps=10))
    with pytest.raises(UserError, match="only 10 steps came, 11 are to be tested"):
        selftest.judge(steps, turns, [], RATES, 11, LEVEL)


def test_a_user_s_run_with_forced_acceptance_is_refused_at_every_temperature() -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match="nothing to measure"):
            prepare(
                target="zoo", draft="lk-eagle3", temperature=temperature, suite_names=[], k=3, rejection="synthetic"
            )


def test_only_the_self_test_forces_rates_and_only_forced_rates_open_the_engine() -> None:
    files = [*(ROOT / "speceval").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    forcing = re.compile(r"forced=(?!None|job\.forced)")  # an order passes its job's on, or none
    assert [file.name for file in files if forcing.search(file.read_text())] == ["selftest.py"]
    assert [file.name for file in files if "KNOWN_ANSWER" in file.read_text()] == ["start.py"]


def test_the_forced_rates_reach_the_engine_and_the_run_is_marked(tmp_path: Path) -> None:
    job = selftest.prepare("zoo", "lk-eagle3", 1.0, RATES, 2, tmp_path)
    assert order(job).forced == RATES and order(job).rejection == "synthetic"
    assert order(replace(job, forced=None)).forced is None
    assert job.spec.rejection == "synthetic" and not job.spec.record and job.spec.seeds == (10_000, 10_001)


def test_a_drafter_that_may_draft_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="drafts nothing in some steps"):
        selftest.prepare("zoo", "ngram", 1.0, RATES, 2, tmp_path)


def test_the_simulated_engine_and_the_whole_harness_give_the_forced_rates_back(tmp_path: Path) -> None:
    """From the request to the stored run and its tables, at both temperatures; false alarms < 1e-6."""
    jobs = [
        selftest.prepare("zoo", "lk-eagle3", temperature, RATES, 4, tmp_path, engine="simulated")
        for temperature in selftest.TEMPERATURES
    ]

    def measured(job: Job) -> store.StoredRun:
        return launch.run(job, lambda *_: nullcontext(lambda: None), lambda _: nullcontext())

    report = selftest.run(jobs, 500, measured)
    assert report["ok"], report["verdict"]
    assert [condition["engine"]["runner"] for condition in report["conditions"]] == ["simulated"] * 2


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("runner", ["v1", pytest.param("v2", marks=pytest.mark.long)])
def test_vllm_and_the_harness_give_the_forced_rates_back(zoo: dict[str, Path], tmp_path: Path, runner: str) -> None:
    """One engine, sampled requests. The kept run says of itself that it is no measurement."""
    command = [sys.executable, "-m", "speceval", "selftest", "--temp", "1", "--steps", "600", "--rates", "0.8,0.5,0.2"]
    options = ["--runner", runner, "--runs", "runs", "--out", "report.json", "--json"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == OUTPUTS["selftest"]
    assert report["ok"] and report["verdict"] == "the harness gives the forced rates back"
    (condition,) = report["conditions"]
    assert condition["engine"]["runner"] == runner.upper()
    assert condition["tested_steps"] == 600 and len(condition["checks"]) == selftest.tests(3) + 4
    run = store.read_run(tmp_path / "runs" / "T1")
    assert run.meta.problems == [record.FORCED] and tables.run_json(run)["forced"] is True
