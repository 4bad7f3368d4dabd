"""`speceval baseline --texts`, `run --replay FILE` and `check` on replays: exact on these texts, never inconclusive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import calling

from speceval.estimate import baseline, replay
from speceval.store import read_run

ENGINE = ("--target", "zoo", "--engine", "simulated")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return calling.caller(monkeypatch, capfd)


@pytest.fixture
def replayed(call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A replay in ./old, along the texts of ./free, and its file base.json."""
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text("".join(json.dumps({"turns": [f"question {n}", "and?"]}) + "\n" for n in range(6)))
    suite = ("--suite", "own.jsonl", "--seeds", "0-1", "--max-tokens", "24")
    for arguments in (
        ("run", *ENGINE, "--draft", "kl-eagle3", "--k", "3", "--temp", "1", *suite, "--out", "free"),
        ("run", *ENGINE, "--draft", "kl-eagle3", "--k", "3", "--temp", "1", "--replay", "free", "--out", "old"),
        ("baseline", "old", "--texts", "-o", "base.json"),
    ):
        code, _, err = call(*arguments)
        assert code == 0, err
    return tmp_path


def damaged(factor: float, name: str = "new") -> Path:
    """A copy of ./old whose drafts are kept with `factor` times their chance, and none of one place's."""
    shutil.copytree("old", name)
    steps = pd.read_parquet(Path(name) / "steps.parquet")
    kept = [column for column in steps if column.startswith("kept_")]
    steps[kept] = (steps[kept] * factor).astype("float32")
    steps.to_parquet(Path(name) / "steps.parquet", index=False)
    return Path(name)


def tau(directory: Path) -> float:
    totals = replay.conversation_totals(read_run(directory).steps).sum()
    return float(totals["committed"] / totals["steps"])


def edit(path: str, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(Path(path).read_text())
    change(data)
    Path("edited.json").write_text(json.dumps(data))


def test_the_file_gives_back_the_texts_and_the_numbers_of_the_replay(call, replayed: Path) -> None:
    kept = baseline.read(Path("base.json"))
    assert isinstance(kept, baseline.TextBaseline)
    [steps] = kept.steps().values()
    stored = read_run(Path("old")).steps
    pd.testing.assert_frame_equal(steps[list(stored.columns.intersection(steps.columns))], stored[
        list(stored.columns.intersection(steps.columns))], check_dtype=False)  # fmt: skip
    [counts] = kept.counts().values()
    assert counts["committed"].sum() / counts["steps"].sum() == pytest.approx(tau(Path("old")), rel=1e-12)


def test_the_same_weights_pass_and_a_loss_of_a_thousandth_is_caught(call, replayed: Path) -> None:
    code, out, _ = call("check", "old", "--baseline", "base.json", "--margin", "0.05%", "--json")
    [on_texts] = json.loads(out)["on_these_texts"]["suites"]
    assert code == 0 and on_texts["change_percent"] == 0
    worse = damaged(0.997)
    loss = 1 - tau(worse) / tau(Path("old"))
    assert 0.0005 < loss < 0.003
    code, out, err = call("check", worse, "--baseline", "base.json", "--margin", f"{50 * loss:.4f}%")
    assert code == 1, err
    said = " ".join(out.split())
    assert "on these texts: fail" in said and "accepted tokens fewer, near '" in said and "more steps" in said
    assert call("check", worse, "--baseline", "base.json", "--margin", f"{150 * loss:.4f}%")[0] == 0


def test_what_rounding_changes_is_measured_on_the_same_weights_and_let_through(call, replayed: Path) -> None:
    again = damaged(0.9995, "again")
    assert call("baseline", "old", "--texts", "--again", again, "-o", "with.json")[0] == 0
    spread = 1 - tau(again) / tau(Path("old"))
    kept = baseline.read(Path("with.json"))
    assert isinstance(kept, baseline.TextBaseline) and kept.spread == {"own": pytest.approx(spread, rel=1e-6)}
    margin = ("--margin", f"{50 * spread:.5f}%")
    assert call("check", again, "--baseline", "base.json", *margin)[0] == 1
    assert call("check", again, "--baseline", "with.json", *margin)[0] == 0


def test_a_replay_of_the_file_is_that_of_the_run_and_is_judged_by_it(call, replayed: Path) -> None:
    arguments = ("run", *ENGINE, "--draft", "lk-eagle3", "--k", "3", "--temp", "1", "--batch", "2")
    assert call(*arguments, "--replay", "base.json", "--out", "by-file")[0] == 0
    assert call(*arguments, "--replay", "free", "--out", "by-run")[0] == 0
    by_file, by_run = (read_run(Path(name)) for name in ("by-file", "by-run"))
    assert by_file.steps.equals(by_run.steps) and by_file.meta.spec == by_run.meta.spec
    code, out, err = call("check", "by-file", "--baseline", "base.json")
    assert code in (0, 1) and "on prompts like these" in " ".join(out.split()), err


def test_junit_and_markdown_tell_the_two_parts_apart(call, replayed: Path) -> None:
    worse = damaged(0.9)
    call("check", worse, "--baseline", "base.json", "--junit", "j.xml", "--markdown", "m.md")
    assert 'name="tau on these texts"' in Path("j.xml").read_text()
    text = Path("m.md").read_text()
    assert "fail at a margin" in text and "on these texts: fail" in text and "on prompts like these" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("baseline", "free", "--texts", "-o", "x.json"), "free: sampled, so its counts hold chance: replay it"),
        (("baseline", "free", "--again", "old", "-o", "x.json"), "--again: .* add --texts"),
        (("check", "free", "--baseline", "base.json"), "a replay has no accepted tokens to count"),
        (("check", "old", "--baseline", "free"), "a replay has no accepted tokens to count"),
        (("baseline", "old", "-o", "x.json"), "a replay has no accepted tokens to count: .*--texts"),
    ],
)
def test_what_does_not_belong_together_is_one_line_and_4(
    call, replayed: Path, arguments: tuple[str, ...], says: str
) -> None:
    import re

    code, out, err = call(*arguments)
    assert code == 4 and not out and err.count("\n") == 1 and re.search(says, err), err
    assert not Path("x.json").exists()


def shorten(data: dict[str, Any]) -> None:
    data["texts"][0]["drafted"].pop()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shorten, "places of"),
        (lambda data: data["texts"][0].update(kept="AAAA"), "kept is not of"),
        (lambda data: data["texts"][0].update(kept="!"), "kept is not of"),
        (lambda data: data["texts"].append(data["texts"][0]), "holds one twice"),
        (lambda data: data["texts"][0].update(suite="other"), "no suite of the fingerprint"),
        (lambda data: data.update(texts=[]), "texts"),
        (lambda data: data["asked"].pop("top_p"), "'asked' has no top_p"),
        (lambda data: data["texts"][0]["token_ids"].__setitem__(0, 5), "texts are not those"),
    ],
)
def test_a_damaged_file_of_texts_is_one_line_and_4(call, replayed: Path, change, says: str) -> None:
    edit("base.json", change)
    arguments = ("run", *ENGINE, "--draft", "lk-eagle3", "--k", "3", "--temp", "1", "--out", "x")
    code, _, err = call(*arguments, "--replay", "edited.json")
    assert code == 4 and err.count("\n") == 1 and says in err and "edited.json" in err, err
    assert not Path("x").exists()


def test_a_file_without_texts_cannot_be_replayed(call, replayed: Path) -> None:
    assert call("baseline", "free", "-o", "counts.json")[0] == 0
    arguments = ("run", *ENGINE, "--draft", "lk-eagle3", "--k", "3", "--temp", "1", "--out", "x")
    code, _, err = call(*arguments, "--replay", "counts.json")
    assert code == 4 and "--replay counts.json: keeps no texts" in err
