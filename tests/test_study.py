"""scripts/smollm2/study.py: what is kept of a replay is enough for its numbers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from speceval import read_run
from speceval.estimate import replay

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "results" / "smollm2" / "kl-eagle3-T1-replay"


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    folder = str(ROOT / "scripts" / "smollm2")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("study")
    finally:
        sys.path.remove(folder)
        sys.modules.pop("study", None)


def test_answers_and_their_parts_add_up_to_what_the_replay_gives(study: ModuleType) -> None:
    run = read_run(STORED)
    kept = study.totals(run)
    sums = kept.assign(parts=kept["part"] > 0).groupby(["suite", "k", "parts"], observed=True)[["steps", "committed"]]
    sums = sums.sum()
    for suite, steps in run.steps.groupby("suite"):
        for k in (1, 5, 7):
            cut = steps.drop(columns=[f"kept_{j}" for j in range(k + 1, 8)])
            whole = replay.conversation_totals(cut).sum()
            assert sums.loc[suite, k, False].to_dict() == pytest.approx(whole.to_dict(), rel=1e-5)
        assert sums.loc[suite, 5, True].to_dict() == pytest.approx(sums.loc[suite, 5, False].to_dict(), rel=1e-5)
    assert set(kept[kept["part"] == 2]["conversation"]) < set(kept["conversation"]), "short answers end in part 1"


def test_each_part_is_of_the_steps_that_start_in_its_tokens(study: ModuleType) -> None:
    run = read_run(STORED)
    kept = study.totals(run)
    committed = kept[(kept["k"] == 5) & (kept["part"] == 2) & (kept["conversation"] == "0000")]["committed"]
    late = run.steps[(run.steps["step"] >= study.PART) & (run.steps["conversation"] == "0000")]
    assert 0 < committed.max() <= len(late.query("suite == 'gsm8k'")) + study.K_OF_PARTS


def test_the_commands_say_what_the_stored_records_say(study: ModuleType) -> None:
    one, another = study.TEXTS[0], study.TEXTS[-1]
    assert one.run(Path("W"), None)[-2:] == ["--out", "W/T1/text"] and "--seeds" not in one.run(Path("W"), None)
    assert another.run(Path("W"), Path("d"))[-6:-2] == ["--seeds", "2", "--data-dir", "d"]
    greedy = one.replay(Path("W"), "lk-eagle3-greedy")
    assert (
        greedy[3] == "lk-eagle3" and greedy[6:8] == ["--drafting", "greedy"] and greedy[-1] == "W/T1/lk-eagle3-greedy"
    )
    assert one.replay(Path("W"), "kl-eagle3-seed1")[3] == "W/drafters/kl-eagle3-seed1"
    assert one.replay(Path("W"), "kl-medusa")[5] == "5"
