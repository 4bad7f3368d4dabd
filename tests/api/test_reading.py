"""`read_run`, `validate`, `compare`, `check`, `explain` and the statistics beside them, on stored runs of the demo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import speceval
from speceval import Run, cli
from speceval.estimate import baseline as baselines

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "results" / "reference" / "demo"
KL, LK = (DEMO / f"{name}-eagle3-T1-probabilistic" for name in ("kl", "lk"))


@pytest.fixture(scope="module")
def kl() -> Run:
    return speceval.read_run(KL)


@pytest.fixture(scope="module")
def lk() -> Run:
    return speceval.read_run(str(LK))


@pytest.fixture(scope="module")
def damaged(lk: Run) -> Run:
    steps = lk.steps.copy()
    steps.loc[:9, "accepted"] = steps["accepted"][:10] + 1
    return replace(lk, steps=steps)


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, object]:
    """What a command prints as JSON."""
    monkeypatch.setattr("sys.argv", ["speceval", *arguments, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    shown: dict[str, object] = json.loads(capsys.readouterr().out)
    return shown


def plain(content: object) -> object:
    return json.loads(json.dumps(content))


def test_a_run_is_one_class_that_every_function_takes(kl: Run) -> None:
    assert isinstance(kl, Run) and isinstance(replace(kl, turns=kl.turns), Run)
    assert kl == kl and kl != speceval.read_run(KL)
    assert repr(kl) == (
        "<run kl-eagle3-T1-probabilistic: zoo with kl-eagle3, T=1, K=5, probabilistic drafting, 2400 conversations, "
        "complete>"
    )


def test_the_numbers_are_those_of_the_commands(
    kl: Run, lk: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plain(lk.as_json()) == command(capsys, monkeypatch, "show", str(LK))
    compared = command(capsys, monkeypatch, "compare", str(KL), str(LK))
    assert plain(speceval.compare(KL, LK).as_json()) == compared
    explained = command(capsys, monkeypatch, "explain", str(LK))
    assert plain(speceval.explain(LK).as_json()) == explained
    checked = command(capsys, monkeypatch, "check", str(LK), "--baseline", str(KL), "--margin", "3%")
    assert plain({"schema": 1, **speceval.check(lk, kl, margin=0.03).as_json()}) == checked


def test_runs_and_their_directories_are_the_same_to_all(kl: Run, lk: Run) -> None:
    assert speceval.compare(kl, lk).as_json() == speceval.compare(str(KL), LK).as_json()
    assert speceval.check(lk, KL).as_json() == speceval.check(LK, kl).as_json()
    assert speceval.validate(lk) == speceval.validate(LK) == []


def test_a_file_of_speceval_baseline_is_a_baseline_too(kl: Run, tmp_path: Path) -> None:
    baselines.write(baselines.Baseline.of(kl), tmp_path / "kl.json.gz")
    assert speceval.check(LK, tmp_path / "kl.json.gz").as_json() == speceval.check(LK, KL).as_json()


def test_tables_that_were_altered_in_memory_are_seen(damaged: Run, kl: Run) -> None:
    assert len(speceval.validate(damaged)) >= 1
    for use in (
        lambda: speceval.compare(kl, damaged),
        lambda: speceval.check(damaged, kl),
        lambda: speceval.check(kl, damaged),
        lambda: speceval.explain(damaged),
        lambda: speceval.export(damaged, "model-card"),
        lambda: speceval.plot(damaged),
        lambda: speceval.report(damaged, "never.html"),
    ):
        with pytest.raises(speceval.UserError, match="the run's books do not balance"):
            use()


def test_estimates_are_numbers_and_text(lk: Run) -> None:
    tau = lk.tau()
    assert str(tau) == f"{tau}" == "2.467 [2.315, 2.740]" and f"{tau:1}" == "2.5 [2.3, 2.7]"
    assert tau.value == pytest.approx(1 + lk.steps["accepted"].mean())
    assert tau.low is not None and tau.high is not None and tau.se is not None
    assert lk.tau("demo", "tau_rb").value == lk.summary()["tau_rb"]["value"]
    assert str(speceval.Estimate(2.0, 1.5, 2.5)) == "2.000 ± 0.500"
    assert str(speceval.Estimate(None, None, None)) == "n/a"


def test_an_unknown_suite_or_definition_is_named_with_what_there_is(lk: Run) -> None:
    with pytest.raises(speceval.UserError, match=r"suite 'gsm8k': .* has demo: name one of them"):
        lk.tau("gsm8k")
    with pytest.raises(speceval.UserError, match="definition 'tau_x': no such acceptance length: there are tau, tau_p"):
        lk.tau(definition="tau_x")


def test_a_comparison_is_a_sequence_of_rows(kl: Run, lk: Run) -> None:
    found = speceval.compare(kl, lk, DEMO / "lk-eagle3-T1-greedy", allow=["drafting", "seeds"])
    assert [row.draft for row in found] == ["lk-eagle3"] * 2 and len(found) == 2 and found[:1] == [found[0]]
    row = found[0]
    assert row.difference.value == pytest.approx((lk.tau().value or 0) - (kl.tau().value or 0))
    assert row.tau_a == kl.tau() and row.tau_b == lk.tau()
    assert any(line.startswith("drafting") for line in found.allowed)
    with pytest.raises(speceval.UserError, match="one run is nothing to compare"):
        speceval.compare(kl)


def test_other_protocols_are_not_comparable(kl: Run) -> None:
    for use in (speceval.compare, speceval.check):
        with pytest.raises(speceval.NotComparable, match=r"drafting: .* through with allow drafting( allow seeds)?$"):
            use(kl, DEMO / "lk-eagle3-T1-greedy")


@pytest.mark.parametrize("margin", [0.0, -0.02, 2.0, 0.51, float("nan")])
def test_a_margin_that_is_no_share_is_refused(kl: Run, margin: float) -> None:
    with pytest.raises(speceval.UserError, match=r"^margin .*write 2 % as 0\.02"):
        speceval.check(kl, kl, margin=margin)
    with pytest.raises(speceval.UserError, match=r"^position_margin"):
        speceval.check(kl, kl, position_margin=margin)


def test_the_gate_on_counts_is_the_gate_on_runs(kl: Run, lk: Run) -> None:
    whole, counted = speceval.check(lk, kl), speceval.check_counts(lk.counts(), kl.counts())
    assert counted == whole.check
    assert whole.verdict == "inconclusive" and whole.exit_code == 2 and whole.suites == counted.suites
    assert lk.counts()["demo"]["accepted"].sum() == lk.steps["accepted"].sum()


def test_ratio_gives_tau_its_interval(kl: Run, lk: Run) -> None:
    sums = [run.counts()["demo"] for run in (kl, lk)]
    x, y = ([one["steps"] + one["accepted"] for one in sums], [one["steps"] for one in sums])
    assert speceval.ratio(x[1], y[1]) == lk.tau()
    assert speceval.ratio_difference(x[0], y[0], x[1], y[1]) == speceval.compare(kl, lk)[0].difference
    assert speceval.ratio([1, 1], [1, 1], bounds=(0, 1)).high == 1
    narrow, wide = (speceval.ratio(x[1], y[1], confidence=level) for level in (0.8, 0.99))
    assert np.diff([wide.low, narrow.low, narrow.high, wide.high]).min() > 0  # type: ignore[arg-type]


def test_p_values_are_adjusted_for_each_other() -> None:
    assert speceval.holm([0.01, None, 0.04]) == [0.02, None, 0.04]


def test_what_is_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    for use in (speceval.read_run, speceval.validate, speceval.explain):
        with pytest.raises(speceval.UserError, match="no run here"):
            use(tmp_path)
