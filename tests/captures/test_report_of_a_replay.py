"""`speceval report` of replays: exact numbers, what each position keeps, the hardest places with the text around."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from speceval.errors import NotComparable
from speceval.estimate import replay
from speceval.show.report import along, build
from speceval.store import OUTPUTS, read_run

pytestmark = pytest.mark.slow


NAME = "<b>x</b>\u202e\x1b[31m{{ 7*7 }}"


@pytest.fixture
def replays(call, captured: Path) -> list[Path]:
    """Two drafters along the texts of ./cap."""
    for name in ("eagle3", "medusa"):
        code, _, err = call("replay", captured, "--draft", f"./{name}", "--method", name, "--k", "3", "--out", name)
        assert code == 0, err
    return [Path("eagle3"), Path("medusa")]


def page(call, *runs: Path) -> str:
    code, _, err = call("report", *runs, "-o", "page.html")
    assert code == 0 and err.startswith("wrote page.html"), err
    return unescape(re.sub(r"<(style)>.*?</\1>|<[^>]*>", " ", Path("page.html").read_text(), flags=re.DOTALL))


def test_one_replay_has_its_exact_tau_its_positions_and_its_hardest_places(call, replays: list[Path]) -> None:
    text, run = page(call, replays[0]), read_run(replays[0])
    totals = replay.conversation_totals(run.steps).sum()
    assert f"expected to commit {totals['committed'] / totals['steps']:.4f} tokens at K=3" in text
    assert "Measured on a capture: no engine ran" in text and "law of the texts" in text
    rows = along.positions(run, run.suites[0], 3)
    for number, row in enumerate(rows, start=1):
        assert row["kept"] == pytest.approx(np.nanmean(run.steps[f"kept_{number}"]))
        assert f"kept: {row['kept']:.3f}" in text and f"reached: {row['conditional']:.3f}" in text
    [suite] = run.suites
    unconditional = replay.summarise(*run.suite(suite), 3)["positions"][0]["unconditional"]
    assert rows[0]["conditional"] == pytest.approx(unconditional)  # every step reaches the first
    assert "tau Rao" not in text.partition("Words")[0] and "cache hits" not in text


def test_two_replays_say_what_changed_exactly_and_what_is_decided(call, replays: list[Path]) -> None:
    text = page(call, *replays)
    totals = [replay.conversation_totals(read_run(run).steps).sum() for run in replays]
    a, b = (each["committed"] / each["steps"] for each in totals)
    assert f"{100 * (b / a - 1):+.3f} %, exactly ({a:.4f}, {b:.4f})" in text
    assert "Differences from eagle3" in text and "where it accepts fewer tokens than" in text
    assert "tau committed over the requests that both runs have" in text


def test_tokens_are_marked_by_the_chance_that_a_free_run_drafted_them(captured: Path, replays: list[Path]) -> None:
    run = read_run(replays[0])
    for _, text in run.steps.groupby(replay.REQUEST):
        v = replay.starts(text, replay.survival(text))
        found = along.accepted(text)
        assert found[:-1] == pytest.approx(1 - v[1:], abs=1e-6)  # what is no accepted draft is where a step starts next
    picks = along.choose(run)
    turns = along.gather(run, picks)
    assert turns is not None
    ids = dict(turns)
    for row in (json.loads(line) for line in (replays[0] / OUTPUTS).read_text().splitlines()):
        for turn in ids.get((row["suite"], row["conversation"], row["seed"]), [])[row["turn"] - 1 : row["turn"]]:
            assert sum(turn.counts.values()) == len(row["token_ids"]) == len(turn.groups)


def test_what_a_text_says_is_escaped(call, replays: list[Path]) -> None:
    path = replays[0] / OUTPUTS
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"output": NAME, "user": NAME}) + "\n" for row in rows))
    text = page(call, replays[0])
    html = Path("page.html").read_text()
    assert "<b>x" not in html and "&lt;b&gt;x" in html and "\x1b" not in html and "\u202e" not in html
    assert "49" not in text.partition("Outputs")[2].partition("Verification")[0]


def test_places_are_named_where_the_texts_are_gone(call, replays: list[Path]) -> None:
    for run in replays:
        (run / OUTPUTS).unlink()
    text = page(call, *replays)
    assert "the run keeps no texts" in text and "This run keeps no outputs" in text


def test_replays_beside_a_sampled_run_are_refused(call, replays: list[Path]) -> None:
    code, _, err = call("report", replays[0], "free", "-o", "mixed.html")
    assert code == 3 and err.count("\n") == 1 and "eagle3 is a replay, free was sampled" in err
    assert not Path("mixed.html").exists()
    with pytest.raises(NotComparable):
        build.gather([read_run(Path("free")), read_run(replays[0])])
