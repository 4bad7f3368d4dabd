"""`speceval check` and `speceval baseline` on stored runs: every exit code, every output, every kind of bad file."""

import gzip
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from speceval import cli
from speceval.estimate import baseline
from speceval.store import REQUEST, read_run

DEMO = Path(__file__).resolve().parents[2] / "results" / "reference" / "demo"
KL, LK = (str(DEMO / f"{draft}-eagle3-T1-probabilistic") for draft in ("kl", "lk"))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["speceval", *map(str, arguments)])
        monkeypatch.setattr(cli, "_exit", lambda code, line="": (print(line, file=sys.stderr), sys.exit(code)))
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def changed(tmp_path: Path, edit: Callable[[dict[str, Any]], None] | None = None, keep: float = 1.0) -> Path:
    """A copy of the KL run with another run.json, or whose accepted drafts survive with probability `keep`.

    The engine's counters go with the drafts: such a run has none.
    """
    copy = tmp_path / "run"
    copy.mkdir(exist_ok=True)
    for name in ("run.json", "turns.parquet", "steps.parquet"):
        shutil.copy(Path(KL) / name, copy)
    if edit is not None:
        meta = json.loads((copy / "run.json").read_text())
        edit(meta)
        (copy / "run.json").write_text(json.dumps(meta))
    if keep < 1:
        steps = pd.read_parquet(copy / "steps.parquet")
        survived = np.random.default_rng(0).geometric(1 - keep, len(steps)) - 1
        steps["accepted"] = np.minimum(steps["accepted"], survived).astype("int32")
        steps["committed"] = np.minimum(steps["committed"], 1 + steps["accepted"])
        steps.to_parquet(copy / "steps.parquet", index=False)
        turns = pd.read_parquet(copy / "turns.parquet")
        sums = steps.groupby(REQUEST)[["accepted", "committed"]].sum().reindex(pd.MultiIndex.from_frame(turns[REQUEST]))
        accepted, committed = (sums[name].fillna(0).to_numpy().astype(int) for name in ("accepted", "committed"))
        emitted = accepted + (turns["steps"] + turns["undrafted_steps"]).to_numpy()
        turns = turns.assign(accepted=accepted, output_tokens=1 + committed, excess=emitted - committed)
        turns.to_parquet(copy / "turns.parquet", index=False)
        meta = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps(meta | {"segments": []}))
    return copy


def twice(run: str, copy: Path) -> Path:
    """A copy of a stored run with every conversation twice, under two names, and no counters of an engine."""
    copy.mkdir()
    meta = json.loads((Path(run) / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(meta | {"segments": []}))
    for name in ("turns.parquet", "steps.parquet"):
        frame = pd.read_parquet(Path(run) / name)
        again = frame.assign(conversation="again " + frame["conversation"].astype(str))
        pd.concat([frame, again], ignore_index=True).to_parquet(copy / name, index=False)
    return copy


def test_a_better_drafter_passes_with_0_where_the_conversations_are_enough(call, tmp_path: Path) -> None:
    code, out, _ = call("check", LK, "--baseline", KL)
    assert code == 2 and "24 conversations" in " ".join(out.split())
    code, out, _ = call("check", twice(LK, tmp_path / "lk"), "--baseline", twice(KL, tmp_path / "kl"))
    assert code == 0
    assert "PASS at a margin of 2 %" in out and "other drafter weights" in out


def test_a_damaged_drafter_fails_with_1(call, tmp_path: Path) -> None:
    code, out, _ = call("check", changed(tmp_path, keep=0.85), "--baseline", KL)
    assert code == 1
    assert "FAIL" in out and "tau lost" in out and "the same drafter weights" in " ".join(out.split())


def test_a_loss_near_the_margin_is_2_and_says_how_many_conversations_would_settle_it(call) -> None:
    code, out, _ = call("check", KL, "--baseline", LK)
    assert code == 2
    assert re.search(r"INCONCLUSIVE[\s\S]*: \d+ more\s+conversations of this spread", out)


def test_another_protocol_is_3_unless_allowed(call) -> None:
    greedy = str(DEMO / "kl-eagle3-T1-greedy")
    code, _, err = call("check", greedy, "--baseline", KL)
    assert code == 3 and err.startswith("error: ") and err.count("\n") == 1 and "drafting" in err
    code, out, _ = call("check", greedy, "--baseline", KL, "--allow", "drafting")
    assert code == 1 and "allowed difference: drafting" in out


def test_other_seeds_are_comparable(call, tmp_path: Path) -> None:
    def reseed(meta: dict[str, Any]) -> None:
        meta["fingerprint"]["seeds"] = [7, 8, 9]

    assert call("check", changed(tmp_path, reseed), "--baseline", KL)[0] == 2  # too few for 0, but compared


def test_no_conversation_in_common_is_3(call, tmp_path: Path) -> None:
    copy = changed(tmp_path)
    for name in ("steps.parquet", "turns.parquet"):
        frame = pd.read_parquet(copy / name)
        frame["conversation"] = "other " + frame["conversation"]
        frame.to_parquet(copy / name, index=False)
    code, _, err = call("check", copy, "--baseline", KL)
    assert code == 3 and "no conversation in common" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--margin", "2"), "--margin 2: .*write 2 % as 2% or 0.02"),
        (("--margin", "0%"), "--margin 0%: not above 0"),
        (("--margin", "-1%"), "--margin -1%: not above 0"),
        (("--margin", "nan"), "--margin nan: not above 0"),
        (("--margin", "51%"), "at most 50%"),
        (("--margin", "two"), "--margin two: not a share"),
        (("--position-margin", "x%"), "--position-margin x%: not a share"),
        (("--allow", "colour"), "--allow colour: no such field"),
        (("--baseline", "nowhere.json"), "nowhere.json: no such run or baseline file"),
    ],
)
def test_bad_options_are_one_line_and_4(call, arguments: tuple[str, ...], says: str) -> None:
    code, out, err = call("check", LK, "--baseline", KL, *arguments)
    assert code == 4 and not out
    assert err.count("\n") == 1 and re.search(says, err), err


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda meta: meta.update(status="running"), "unfinished"),
        (lambda meta: meta.update(problems=["x"]), "balance"),
        (lambda meta: meta["spec"].update(replay="another"), "a replay whose texts"),
    ],
    ids=["unfinished", "problems", "replay"],
)
@pytest.mark.parametrize("side", ["run", "baseline"])
def test_a_run_that_cannot_be_trusted_is_4_on_either_side(call, tmp_path: Path, edit, says: str, side: str) -> None:
    copy = str(changed(tmp_path, edit))
    code, _, err = call("check", *((copy, "--baseline", KL) if side == "run" else (LK, "--baseline", copy)))
    assert code == 4 and err.count("\n") == 1 and says in err


@pytest.mark.parametrize("name", ["b.json", "b.json.gz"])
def test_the_file_gives_the_verdict_of_the_run_itself(call, tmp_path: Path, name: str) -> None:
    file = tmp_path / "deep" / name
    code, out, _ = call("baseline", KL, "-o", file, "--json")
    assert code == 0 and json.loads(out)["bytes"] == file.stat().st_size < 12_000
    assert baseline.read(file) == baseline.Baseline.of(read_run(Path(KL)))
    for margin in ("2%", "0.01", "4%"):
        by_file, by_run = (call("check", LK, "--baseline", base, "--json", "--margin", margin) for base in (file, KL))
        assert by_file == by_run
    assert [path.name for path in file.parent.iterdir()] == [name]


def test_the_file_holds_no_texts_and_says_where_it_is_from(tmp_path: Path) -> None:
    run = read_run(Path(KL))
    baseline.write(baseline.Baseline.of(run), tmp_path / "b.json")
    data = json.loads((tmp_path / "b.json").read_text())
    assert data["run"] == run.meta.name and data["command"] == run.meta.command
    assert data["weights"]["draft"] == run.meta.fingerprint.draft.weights
    assert set(data["suites"]["demo"]) == {
        *("conversations", "steps", "undrafted", "drafted", "accepted", "committed"),
        *("accepted_at", "drafted_at", "reached_at"),
    }


def damage(path: list[Any], value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(data: dict[str, Any]) -> None:
        place = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (damage(["version"], 2), "version"),
        (damage(["format"], "else"), "not a baseline file"),
        (damage(["note"], "mine"), "'note': there is no such field"),
        (damage(["suites", "demo", "steps", 0], -1), "suites.demo.steps.0"),
        (damage(["suites", "demo", "steps", 0], 1.5), "suites.demo.steps.0"),
        (damage(["suites", "demo", "accepted", 0], 7), "do not add up"),
        (damage(["suites", "demo", "steps", 0], 7), "do not add up"),
        (damage(["suites", "demo", "reached_at", 1, 0], 10**9), "do not add up"),
        (damage(["suites", "demo", "drafted"], []), "drafted has 0 entries for 24"),
        (damage(["suites", "demo", "reached_at"], []), "reached_at has 0 positions"),
        (
            lambda data: damage(["conversations", 1], data["suites"]["demo"]["conversations"][0])(
                data["suites"]["demo"]
            ),
            "twice",
        ),
        (damage(["suites"], {}), "suites"),
        (damage(["weights", "draft"], "sha256:0"), "weights.draft is not that of the fingerprint"),
        (damage(["fingerprint", "engine"], None), "'fingerprint.engine': Input should be"),
    ],
)
def test_a_damaged_file_is_one_line_and_4(call, tmp_path: Path, edit, says: str) -> None:
    data = baseline.Baseline.of(read_run(Path(KL))).model_dump(mode="json")
    edit(data)
    file = tmp_path / "b.json"
    file.write_text(json.dumps(data))
    code, _, err = call("check", LK, "--baseline", file)
    assert code == 4 and err.count("\n") == 1 and str(file) in err and re.search(says, err), err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"\x1f\x8b\x08",
        gzip.compress(b"{}" * 99, mtime=0)[:-9],
        gzip.compress(b"no", mtime=0),
        b"[" * 99999,
    ],
    ids=["empty", "cut", "list", "binary", "cut gzip head", "cut gzip", "gzip of text", "deep"],
)
def test_what_is_no_baseline_file_is_one_line_and_4(call, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "b.json.gz"
    file.write_bytes(content)
    code, _, err = call("check", LK, "--baseline", file)
    assert code == 4 and err.count("\n") == 1 and str(file) in err


def test_nothing_half_written_is_left(call, tmp_path: Path) -> None:
    code, _, err = call("baseline", KL, "-o", tmp_path)
    assert code == 4 and "a directory" in err
    code, _, err = call("baseline", changed(tmp_path, lambda meta: meta.update(status="running")), "-o", tmp_path / "b")
    assert code == 4 and not (tmp_path / "b").exists()


def test_json_is_one_object_with_the_promised_shape(call) -> None:
    code, out, _ = call("check", KL, "--baseline", LK, "--json")
    shown = json.loads(out)
    assert (shown["verdict"], shown["exit_code"], code) == ("inconclusive", 2, 2)
    assert shown["margin_percent"] == 2 and shown["same_draft_weights"] is False
    assert shown["run"]["draft"] == "kl-eagle3" and shown["baseline"]["draft"] == "lk-eagle3"
    suite = shown["suites"][0]
    assert suite["suite"] == "demo" and suite["conversations"] == 24 and suite["needed"] > 24
    assert suite["change_percent"]["low"] < suite["change_percent"]["value"] < suite["change_percent"]["high"]
    assert [row["position"] for row in suite["positions"]] == [1, 2, 3, 4, 5]
    assert suite["positions"][0].keys() >= {"base", "new", "change_percent", "margin_percent", "p_adjusted", "failed"}


def test_junit_counts_what_failed(call, tmp_path: Path) -> None:
    file = tmp_path / "ci" / "junit.xml"
    call("check", changed(tmp_path, keep=0.85), "--baseline", KL, "--junit", file)
    suite = ElementTree.parse(file).getroot()[0]
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert "tau" in failed and "position 1" in failed
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("6", str(len(failed)), "0")
    call("check", KL, "--baseline", LK, "--junit", file)
    suite = ElementTree.parse(file).getroot()[0]
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")
    assert suite.find("testcase[@name='tau']/skipped").get("message").startswith("the change of tau lies between")


def test_names_from_users_are_escaped_everywhere(call, tmp_path: Path) -> None:
    name = "a|b`c <script>[x](y)\x1b[31m\x00 @team & [red]"

    def rename(meta: dict[str, Any]) -> None:
        meta["name"] = name

    junit, markdown = tmp_path / "j.xml", tmp_path / "m.md"
    code, out, _ = call("check", changed(tmp_path, rename), "--baseline", KL, "--junit", junit, "--markdown", markdown)
    assert code == 2 and "\x1b" not in out and "[red]" in out
    text = markdown.read_text()
    assert text.startswith("### ❔ Acceptance length: inconclusive at a margin of 2 %\n")
    assert r"a\|b\`c \<script\>\[x\]\(y\)" in text and "@team" not in text and "\x1b" not in text
    value = ElementTree.parse(junit).find(".//property[@name='run']").get("value")
    assert value == "a|b`c <script>[x](y) @team & [red]"


def test_the_markdown_table_has_as_many_cells_in_every_row(call, tmp_path: Path) -> None:
    call("check", KL, "--baseline", LK, "--markdown", tmp_path / "m.md")
    rows = [line for line in (tmp_path / "m.md").read_text().splitlines() if line.startswith("|")]
    assert [row.count(" | ") for row in rows if "---" not in row] == [6, 6, *[7] * 6]
    assert "❔" in (tmp_path / "m.md").read_text()
