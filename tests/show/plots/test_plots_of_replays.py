"""Figures of replays show what is expected along the texts: the numbers of `show`, `compare` and `table`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speceval.errors import NotComparable
from speceval.estimate import replay
from speceval.estimate.comparison import compare_runs
from speceval.show import plots
from speceval.show.plots import along, conversation, forest, tau_k
from speceval.show.tables import suite_summary
from speceval.store import StoredRun, read_run

STUDY = Path(__file__).resolve().parents[3] / "results" / "smollm2"


@pytest.fixture(scope="module")
def replays() -> list[StoredRun]:
    return [read_run(STUDY / f"{drafter}-eagle3-T1-replay") for drafter in ("kl", "lk")]


def test_a_curve_ends_at_the_replay_s_own_tau_and_grows_with_k(replays: list[StoredRun]) -> None:
    steps = replays[0].suite("gsm8k")[0]
    curve = [row["value"] for row in tau_k.curve(steps, 7)]
    assert curve[-1] == pytest.approx(suite_summary(replays[0], "gsm8k")["tau_committed"]["value"])
    assert curve == sorted(curve) and curve[0] > 1.3
    # K = 1: a step starts one token on, or two where the draft is kept
    kept = np.nan_to_num(steps["kept_1"].to_numpy(float))
    assert curve[0] == pytest.approx(_by_hand(steps.assign(kept_1=kept)), abs=1e-9)


def _by_hand(steps) -> float:  # type: ignore[no-untyped-def]
    committed = starts = 0.0
    for _, text in steps.groupby(replay.REQUEST, sort=False):
        kept, v = text["kept_1"].to_numpy(), np.zeros(len(text) + 2)
        v[0] = 1
        for place, chance in enumerate(kept):
            v[place + 1] += v[place] * (1 - chance)
            v[place + 2] += v[place] * chance
        starts += v[: len(text)].sum()
        committed += len(text)
    return committed / starts


def test_a_forest_has_the_differences_of_compare(replays: list[StoredRun]) -> None:
    told = {row["suite"]: row["relative_percent"]["value"] for row in compare_runs(replays)["comparisons"]}
    assert {row["suite"]: row["value"] for row in forest.rows(replays)} == told
    assert all(told.values())


def test_bins_along_the_output_hold_all_expected_steps(replays: list[StoredRun]) -> None:
    steps = replays[0].suite("gsm8k")[0]
    rows = along.binned(steps, 8, 7)
    totals = replay.conversation_totals(steps).sum()
    assert sum(row["steps"] for row in rows) == pytest.approx(totals["steps"])
    accepted = sum(row["steps"] * row["value"] for row in rows)
    assert accepted == pytest.approx(totals["committed"] - totals["steps"])


def test_conversations_have_their_own_tau_committed(replays: list[StoredRun]) -> None:
    found = conversation.taus(replays[0].suite("gsm8k")[0])
    assert len(found) == 20 and found.min() > 1 and found.max() > 1.5


@pytest.mark.parametrize("kind", list(plots.OF_RUNS))
def test_every_kind_says_that_it_is_of_given_texts(replays: list[StoredRun], kind: str) -> None:
    caption = plots.draw(kind, replays).caption
    assert "tau committed" in caption or "given texts" in caption
    assert "new seeds" not in caption


@pytest.mark.parametrize("kind", list(plots.OF_RUNS))
def test_replays_beside_sampled_runs_are_refused(replays: list[StoredRun], kind: str) -> None:
    with pytest.raises(NotComparable, match=r"is a replay, .*draw replays by themselves$"):
        plots.draw(kind, [replays[0], read_run(STUDY / "kl-eagle3-T1")], allow=["replay", "engine.k"])
