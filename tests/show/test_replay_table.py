"""A table of runs along the same texts, of the stored study."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from speceval import read_run
from speceval.errors import UserError
from speceval.estimate.comparison import compare_runs
from speceval.show.layouts import build
from speceval.show.layouts.form import Table

pytestmark = pytest.mark.slow


STUDY = Path(__file__).resolve().parents[2] / "results" / "smollm2"
RUNS = [STUDY / f"{drafter}-T1-replay" for drafter in ("lk-eagle3", "kl-eagle3", "lk-medusa", "kl-medusa")]


def numbers(table: Table, definition: str) -> dict[tuple[str, str], float]:
    return {(row["drafter"], row["suite"]): row["value"] for row in table.records if row["definition"] == definition}


def test_every_drafter_has_its_expected_length_and_its_change_over_kl_of_its_own_architecture() -> None:
    table = build("summary", RUNS)
    taus, changes = numbers(table, "tau_committed"), numbers(table, "percent over the baseline")
    assert table.layout == "replays" and len(taus) == 12
    assert {drafter for drafter, _ in changes} == {"lk-eagle3", "lk-medusa"}
    runs = [read_run(STUDY / f"{drafter}-eagle3-T1-replay") for drafter in ("kl", "lk")]
    for row in compare_runs(runs)["comparisons"]:
        suite = {"gsm8k": "GSM8K", "humaneval": "HumanEval", "mt_bench": "MT-Bench"}[row["suite"]]
        assert changes["lk-eagle3", suite] == row["relative_percent"]["value"]
        assert taus["lk-eagle3", suite] == row["tau_b"]["value"]


def test_the_baseline_is_the_one_that_is_named() -> None:
    changes = numbers(build("summary", RUNS, "lk-eagle3"), "percent over the baseline")
    assert {drafter for drafter, _ in changes} == {"kl-eagle3"} and max(changes.values()) < 0


def test_what_counts_is_refused_and_so_is_a_drafter_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"^--layout positions: counts, and these are replays"):
        build("positions", RUNS)
    with pytest.raises(UserError, match=r"^--over nix: no such drafter in these runs; there are kl-eagle3"):
        build("summary", RUNS, "nix")


def test_a_name_that_several_replays_bear_is_no_baseline(tmp_path: Path) -> None:
    shutil.copytree(STUDY / "kl-eagle3-T1-replay", tmp_path / "again")
    table = build("summary", [*RUNS, tmp_path / "again"])
    assert {drafter for drafter, _ in numbers(table, "percent over the baseline")} == {"lk-medusa"}
    (note,) = [note for note in table.notes if note.startswith("No Δ%")]
    assert note.startswith("No Δ% of lk-eagle3: 2 replays of its architecture and K are KL (")
    labels = [row.cells[0].text for row in table.rows if "kl-eagle3" in row.cells[0].text]
    assert len(set(labels)) == 2 and all("(" in label for label in labels)  # told apart by their runs


def test_a_named_baseline_is_of_the_same_architecture_or_there_is_none() -> None:
    table = build("summary", RUNS, "kl-eagle3")
    assert {drafter for drafter, _ in numbers(table, "percent over the baseline")} == {"lk-eagle3"}
    told = [note for note in table.notes if note.startswith("No Δ%")]
    assert len(told) == 2 and all(
        "kl-eagle3 is not among the replays of smollm2-135m-q4, MEDUSA" in note for note in told
    )
    assert numbers(build("summary", RUNS, "KL"), "percent over the baseline") != {}  # a loss is a name as well
