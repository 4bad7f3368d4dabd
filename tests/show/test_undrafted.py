"""A drafter that does not draft at every step: every view says how many steps its tau is of, and what a clock sees."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.table_runs import constant, write_run

from speceval import cli
from speceval.show.layouts import LAYOUTS, build
from speceval.show.report import differences
from speceval.store import REQUEST, STEPS, TURNS, read_run

NOTE = "decode steps had no drafts and are in no tau but that over all steps"
CONVERSATIONS = 40


def rarely_drafting(directory: Path, undrafted: int, draft: str = "ngram", accepted: int = 2) -> Path:
    """A run whose every conversation has 5 steps that emit 3 tokens each, and as many of one token as asked for."""
    run = write_run(directory, {"demo": constant(accepted, CONVERSATIONS)}, draft=draft, k=5, drafting="deterministic")
    steps, turns = pd.read_parquet(run / STEPS), pd.read_parquet(run / TURNS)
    first = steps.groupby(REQUEST).head(1)
    plain = [first.assign(step=6 + n, drafted=0, accepted=0, committed=1) for n in range(undrafted)]
    steps = pd.concat([steps, *plain]).sort_values([*REQUEST, "step"]).astype(steps.dtypes.to_dict())
    steps.to_parquet(run / STEPS, index=False)
    turns = turns.assign(undrafted_steps=undrafted, output_tokens=turns["output_tokens"] + undrafted)
    turns.to_parquet(run / TURNS, index=False)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Of 100 decode steps a conversation 95 without drafts: (5 * 3 + 95) / 100 tokens a step; and the usual kind."""
    return rarely_drafting(tmp_path / "rare", 95), rarely_drafting(tmp_path / "usual", 0, "other")


def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command prints, in one line."""
    monkeypatch.setattr(sys, "argv", ["speceval", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as exit:
        assert exit.code in (0, 1, 2), capfd.readouterr().err
    return " ".join(capfd.readouterr().out.split())


def test_show_has_the_length_over_all_steps_beside_tau(runs, monkeypatch, capfd) -> None:
    shown = call(monkeypatch, capfd, "show", runs[0])
    assert "tau │ 3.000" in shown and "tau all steps │ 1.100" in shown and "tau committed │ 3.000" in shown
    assert f"3,800 of 4,000 {NOTE}" in shown and "1.100 tokens a step" in shown
    usual = call(monkeypatch, capfd, "show", runs[1])
    assert "all steps" not in usual


@pytest.mark.parametrize(
    "arguments", ["compare {usual} {rare}", "check {rare} --baseline {usual}", "plot {rare} --kind positions -o x.png"]
)
def test_compare_check_and_plot_say_it(arguments: str, runs, monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = arguments.format(rare=runs[0], usual=runs[1]).split()
    shown = call(monkeypatch, capfd, *words)
    assert f"3,800 of 4,000 {NOTE}" in shown


def test_a_drafter_that_drafts_more_often_is_compared_by_all_decode_steps_too(tmp_path, monkeypatch, capfd) -> None:
    """A twentieth of the steps emits 3 tokens, or half of them 2: a decode step 1.1 and 1.5, which is 36 % more."""
    seldom, often = rarely_drafting(tmp_path / "a", 95), rarely_drafting(tmp_path / "b", 5, accepted=1)
    monkeypatch.setenv("COLUMNS", "200")
    shown = call(monkeypatch, capfd, "compare", seldom, often)
    assert "all steps │ 1.100 ± 0.000 │ 1.500 ± 0.000 │ +0.400 [+0.400, +0.400] │ +36.4" in shown
    found = differences.find([read_run(seldom), read_run(often)], ["a", "b"])
    assert [row.quantity for row in found.rows] == ["tau", "tau of all steps"]
    assert found.sentences == [
        "b against a: +36.4 % [+36.4, +36.4] on 40 conversations of demo, the same in every conversation, which leaves "
        "no error to judge by"
    ]


def test_the_higher_tau_of_a_drafter_that_drafts_less_often_is_not_bold(tmp_path: Path) -> None:
    runs = [rarely_drafting(tmp_path / "a", 95), rarely_drafting(tmp_path / "b", 5, "other", accepted=1)]
    table = build("summary", runs)
    assert not any(record["best"] for record in table.records)
    assert any(note.startswith("Nothing is bold among ngram, other on demo") for note in table.notes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_table_says_it(layout: str, runs) -> None:
    table = build(layout, [runs[0]])
    assert any(NOTE in line for line in (*table.footnotes, *table.notes)), layout
    assert not any(NOTE in line for line in build(layout, [runs[1]]).notes)


@pytest.mark.parametrize("kind", ["model-card", "speculation-profile", "lm-eval-style-json"])
def test_every_export_says_it_and_has_the_length_over_all_steps(kind: str, runs, monkeypatch, capfd) -> None:
    """Who reads the file has no other view: 3.0 tokens in a twentieth of the steps are 1.1 of them all."""
    shown = call(monkeypatch, capfd, "export", runs[0], "--as", kind)
    assert f"3,800 of 4,000 {NOTE}" in shown and "all_steps" in shown and "1.1" in shown
    assert "all_steps" not in call(monkeypatch, capfd, "export", runs[1], "--as", kind)


def test_one_percent_of_steps_needs_no_word(tmp_path: Path) -> None:
    from speceval.estimate.acceptance import summarise, undrafted_note

    run = read_run(rarely_drafting(tmp_path / "run", 1))
    steps, turns = run.suite("demo")
    one = steps[~((steps["drafted"] == 0) & (steps["conversation"] != "c0"))]
    assert undrafted_note(one) is None and undrafted_note(steps) is not None  # 1 of 201, 40 of 240
    found = summarise(steps, turns, 5)
    assert found["tau_all_steps"]["value"] == pytest.approx((5 * 3 + 1) / 6) and found["tau"]["value"] == 3


def test_an_interval_of_a_comparison_ends_at_k_plus_1(tmp_path: Path) -> None:
    """Two conversations of one drafted step each: no step emits more than K + 1 tokens."""
    from speceval.estimate import acceptance

    parts = []
    for number, accepted in enumerate((2, 3)):
        counts = np.array([[accepted], [5 - accepted]])
        run = read_run(write_run(tmp_path / str(number), {"demo": counts}, k=5))
        parts += run.suite("demo")
    found = acceptance.compare(*parts)
    assert found["tau_a"]["high"] <= 6 and found["tau_b"]["high"] <= 6


def test_tokens_a_second_are_of_all_steps(tmp_path: Path) -> None:
    """100 steps and a prefill, of which 5 emit 3 tokens and 95 one: 110 tokens, and the first of the request."""
    from speceval.estimate import tuning

    steps, turns = read_run(write_run(tmp_path / "run", {"demo": constant(2, 1)}, k=4)).suite("demo")
    first = steps.head(1)
    rows = [
        first.assign(step=n + 1, drafted=4 * (n < 5), accepted=2 * (n < 5), committed=3 if n < 5 else 1)
        for n in range(100)
    ]
    steps, turns = pd.concat(rows, ignore_index=True), turns.head(1).assign(steps=5, undrafted_steps=95, excess=0)
    accepted = tuning.accepted(turns.assign(output_tokens=111), steps.groupby("conversation").size())
    bursts = {1: [tuning.Burst(1.01, 101, 1.01, 101)] * 3}
    rate, alone = tuning.rates(tuning.Measured({tuning.Setting("ngram", 4): tuning.Tried(accepted, bursts)}))
    assert rate.value == pytest.approx(111 / 1.01) and rate.tau == pytest.approx(1.1)
    assert alone.value == pytest.approx(100)
