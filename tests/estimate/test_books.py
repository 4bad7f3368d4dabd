"""Stored runs are held against their identities where they are read: what is damaged or edited is no measurement."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.calling import caller

from speceval import cli
from speceval.engines.simulated import SimulatedEngine
from speceval.estimate import books, replay
from speceval.estimate.identities import reconcile
from speceval.measure.runner import Progress, Template, measure
from speceval.protocol import make_spec
from speceval.show import notes
from speceval.store import JOURNAL, REQUEST, STEPS, TURNS, Store, read_meta, read_run, write_meta
from speceval.suites import Conversation, Suite

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
STORED = sorted(path.parent for path in REFERENCE.glob("*/*/run.json"))
SOUND = REFERENCE / "demo" / "lk-eagle3-T1-greedy"
OTHER = REFERENCE / "demo" / "kl-eagle3-T1-greedy"

Call = Callable[..., tuple[int, str, str]]
Edit = Callable[[pd.DataFrame, pd.DataFrame], tuple[pd.DataFrame, pd.DataFrame]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """A command, in a directory of its own: exit code, output, complaint."""
    monkeypatch.chdir(tmp_path)
    return caller(monkeypatch, capfd)


def edited(directory: Path, edit: Edit, of: Path = SOUND) -> Path:
    """A copy of a stored run, its tables (turns, steps) edited."""
    shutil.copytree(of, directory)
    tables = edit(*(pd.read_parquet(of / name) for name in (TURNS, STEPS)))
    for name, table in zip((TURNS, STEPS), tables, strict=True):
        table.to_parquet(directory / name, index=False)
    return directory


def fewer_accepted(turns: pd.DataFrame, steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """500 accepted tokens less, in the steps alone."""
    rows = steps.index[steps["accepted"] > 0][:500]
    steps.loc[rows, "accepted"] -= 1
    return turns, steps


def fewer_accepted_everywhere(turns: pd.DataFrame, steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The last step of 500 turns accepts what was cut off one less, in both tables alike."""
    last = steps.groupby(REQUEST)["step"].transform("max") == steps["step"]
    rows = steps.index[last & (steps["accepted"] >= steps["committed"])]
    steps.loc[rows, "accepted"] -= 1
    keys = pd.MultiIndex.from_frame(steps.loc[rows, REQUEST])
    changed = pd.MultiIndex.from_frame(turns[REQUEST]).isin(keys)
    turns.loc[changed, ["accepted", "excess"]] -= 1
    assert len(rows) == changed.sum() > 0 and reconcile(steps, turns) == []
    return turns, steps


def without_a_conversation(turns: pd.DataFrame, steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All seeds of one are gone."""
    gone = turns["conversation"].iloc[0]
    return turns[turns["conversation"] != gone], steps[steps["conversation"] != gone]


def no_probability(turns: pd.DataFrame, steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A draft is accepted with a chance of 1.5."""
    steps.loc[7, "ratio_2"] = 1.5
    return turns, steps


def longer_drafts(turns: pd.DataFrame, steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A step drafts more than K."""
    steps.loc[0, "drafted"] = 99
    turns.loc[0, "drafted"] += 99 - 5
    return turns, steps


def another_seed(turns: pd.DataFrame, steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The last seed is called 777."""
    return turns.replace({"seed": {24: 777}}), steps.replace({"seed": {24: 777}})


BROKEN: dict[Edit, str] = {
    fewer_accepted: r"step \d+ commits \d+ tokens, not 1 \+ \d+ accepted",
    fewer_accepted_everywhere: r"num_accepted_tokens: step rows give \d+, the engine counted \d+",
    without_a_conversation: "the run is finished and has 575 conversations, not 600",
    longer_drafts: "a step drafts 99 tokens, K is 5",
    no_probability: "ratio_2: outside 0 … 1",
    another_seed: "seed 777 is in the tables and was not asked for",
}
"""What is done to a stored run, and a problem that is then named."""


@pytest.mark.parametrize("edit", BROKEN, ids=lambda edit: edit.__name__)
def test_show_and_validate_name_what_does_not_balance_and_exit_with_1(call: Call, tmp_path: Path, edit: Edit) -> None:
    run = edited(tmp_path / "run", edit)
    code, out, err = call("validate", run)
    assert (code, err) == (1, "") and all(line.startswith(f"{run}: ") for line in out.splitlines())
    assert pd.Series(out.splitlines()).str.contains(BROKEN[edit]).any()
    code, shown, err = call("show", run)
    assert (code, err) == (1, "") and "PROBLEM: " in shown and shown.count("PROBLEM: ") <= notes.SCREENFUL + 1
    code, shown, _ = call("show", run, "--json")
    lines = [line.removeprefix(f"{run}: ") for line in out.splitlines()]
    assert code == 1 and json.loads(shown)["problems"][: len(lines)] == lines
    assert ("demo" in json.loads(shown)["suites"]) == (edit is not longer_drafts)


def commands(run: Path) -> dict[str, tuple[object, ...]]:
    """Every command that makes something of a stored run."""
    again = ("run", "--target", "zoo", "--draft", "kl-eagle3", "--temp", "1")
    return {
        "compare": ("compare", OTHER, run),
        "compare to": ("compare", run, OTHER),
        "check": ("check", run, "--baseline", OTHER),
        "check against": ("check", OTHER, "--baseline", run),
        "baseline": ("baseline", run, "-o", "base.json"),
        "table": ("table", run),
        "table of a folder": ("table", run.parent),
        "report": ("report", run, "-o", "page.html"),
        "export": ("export", run, "--as", "model-card"),
        "explain": ("explain", run),
        "plot": ("plot", run, "-o", "plots"),
        "replay": (*again, "--replay", run),
        "against": (*again, "--until", "5%", "--against", run),
    }


@pytest.mark.parametrize("command", commands(SOUND))
@pytest.mark.parametrize("edit", [fewer_accepted, fewer_accepted_everywhere], ids=lambda edit: edit.__name__)
def test_every_other_command_refuses_such_a_run_in_one_line_and_writes_nothing(
    call: Call, tmp_path: Path, command: str, edit: Edit
) -> None:
    run = edited(tmp_path / "runs" / "run", edit)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(*commands(run)[command])
    assert (code, out) == (cli.EXIT_BAD_INPUT, "") and err.count("\n") == 1
    assert f"{run}: the run's books do not balance (" in err and "`speceval validate` names all" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_the_run_itself_found_wrong_is_shown_by_all_and_makes_show_and_validate_fail(
    call: Call, tmp_path: Path
) -> None:
    shutil.copytree(SOUND, tmp_path / "run")
    meta = read_meta(SOUND)
    write_meta(tmp_path / "run", meta.model_copy(update={"problems": ["demo: it is odd"], "status": "inconsistent"}))
    assert call("validate", "run")[:2] == (1, "run: demo: it is odd\n")
    code, out, _ = call("show", "run")
    assert code == 1 and "PROBLEM: demo: it is odd" in out
    assert call("compare", "run", OTHER)[0] == 0


def empty(turns: pd.DataFrame, steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Without a number of accepted tokens in one step."""
    return turns, steps.astype({"accepted": float}).replace({"accepted": {2.0: np.nan}})


UNREADABLE: dict[str, tuple[Edit, str]] = {
    "a column gone from the steps": (lambda t, s: (t, s.drop(columns="accepted")), f"{STEPS}: lacks .* accepted:"),
    "a column gone from the turns": (lambda t, s: (t.drop(columns="excess"), s), f"{TURNS}: lacks .* excess:"),
    "NaN counts": (empty, f"{STEPS}: has empty values in accepted:"),
    "fractions": (lambda t, s: (t, s.astype({"drafted": float})), f"{STEPS}: drafted holds float64, not whole"),
    "text for counts": (lambda t, s: (t.astype({"steps": str}), s), f"{TURNS}: steps holds .*, not whole numbers"),
    "numbers for names": (lambda t, s: (t, s.assign(conversation=1)), f"{STEPS}: conversation holds int64, not text"),
    "a missing name": (
        lambda t, s: (t, s.replace({"conversation": {"0000": None}})),
        f"{STEPS}: has empty values in conv",
    ),
    "text in the record": (lambda t, s: (t, s.assign(ratio_1="x")), f"{STEPS}: ratio_1 holds .*, not floating-point"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_tables_that_are_no_tables_are_one_line_and_exit_with_4_everywhere(
    call: Call, tmp_path: Path, kind: str
) -> None:
    edit, says = UNREADABLE[kind]
    run = edited(tmp_path / "run", edit)
    for arguments in (("show", run), ("show", run, "--json"), ("compare", OTHER, run), ("table", run)):
        code, out, err = call(*arguments)
        assert (code, out) == (cli.EXIT_BAD_INPUT, "") and err.count("\n") == 1
        assert pd.Series([err]).str.contains(f"{run}/{says}").all(), err
    code, out, err = call("validate", run, OTHER)
    assert (code, err) == (cli.EXIT_BAD_INPUT, "")
    assert out.count("\n") == 2 and out.startswith(f"{run}: ") and out.endswith(f"{OTHER}: ok\n")


@pytest.mark.parametrize("name", ["run.json", TURNS, STEPS])
def test_files_that_are_cut_or_scrambled_are_one_line(call: Call, tmp_path: Path, name: str) -> None:
    whole = (SOUND / name).read_bytes()
    chance = np.random.default_rng(0)
    scrambled = bytearray(whole)
    scrambled[len(whole) // 3 : len(whole) // 3 + 64] = chance.bytes(64)
    for content in (b"", whole[: len(whole) // 2], whole[:-1], chance.bytes(999), bytes(scrambled), b"\xff\xfe{"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(SOUND, tmp_path / "run")
        (tmp_path / "run" / name).write_bytes(content)
        for command in ("show", "validate"):
            code, out, err = call(command, "run")
            if content == whole[:-1] and name == "run.json":
                assert code == 0  # a newline
            elif code != 1:  # numbers that were scrambled, not their frame
                assert code == cli.EXIT_BAD_INPUT and (out if command == "validate" else err).count("\n") == 1


def test_a_journal_with_a_line_that_is_no_conversation_is_one_line(call: Call, tmp_path: Path) -> None:
    for line in ('{"suite": "s"}', "[]", '{"suite": "s", "conversation": "c", "seed": 0, "turns": [{}]}', "3"):
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        unfinished = read_meta(SOUND).model_copy(update={"status": "running"})
        write_meta(run, unfinished)
        (run / JOURNAL).write_text(line + "\n")
        code, out, err = call("show", "run")
        assert (code, out) == (cli.EXIT_BAD_INPUT, "") and err.count("\n") == 1 and "line 1 is damaged" in err


def test_a_journal_that_was_edited_does_not_balance(call: Call, tmp_path: Path) -> None:
    """An unfinished run, of an engine with a known answer, whose file has another number of tokens committed."""
    run = unfinished(tmp_path / "run")
    assert call("validate", run)[:2] == (0, f"{run}: ok\n")
    lines = (run / JOURNAL).read_text().splitlines()
    first = json.loads(lines[0])
    first["turns"][0]["steps"][0][2] += 1
    (run / JOURNAL).write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    code, out, _ = call("validate", run)
    assert code == 1 and "step 1 commits" in out


def unfinished(directory: Path) -> Path:
    """A run of twelve conversations that was never finished."""
    conversations = [Conversation(f"{i:02}", "c", ["question"]) for i in range(12)]
    suite = Suite("demo", 1, "hash", conversations, 60, None, "{prompt}", "made here")
    spec = make_spec(target="t", draft="d", k=3, temperature=1.0, drafting="probabilistic", suites=("demo",))
    meta = read_meta(SOUND).model_copy(update={"status": "running", "spec": spec, "segments": []})
    with Store(directory) as store:
        store.write_meta(meta)
        measure(SimulatedEngine((0.8, 0.6, 0.5)), spec, [suite], Template({}, None), store, Progress(12), lambda: None)
    return directory


def test_validate_prints_ok_for_every_sound_run(call: Call) -> None:
    code, out, _ = call("validate", *STORED)
    assert code == 0 and out.splitlines() == [f"{run}: ok" for run in STORED] and len(STORED) == 46


def test_validate_as_json_tells_sound_broken_and_unreadable_apart(call: Call, tmp_path: Path) -> None:
    broken = edited(tmp_path / "broken", without_a_conversation)
    code, out, _ = call("validate", SOUND, broken, tmp_path / "nothing", "--json")
    assert code == cli.EXIT_BAD_INPUT
    sound, bad, missing = json.loads(out)["runs"]
    assert sound == {"run": str(SOUND), "ok": True, "readable": True, "problems": []}
    assert (bad["ok"], bad["readable"]) == (False, True) and len(bad["problems"]) > 1
    assert (missing["ok"], missing["readable"], len(missing["problems"])) == (False, False, 1)
    assert call("validate", SOUND, broken)[0] == 1


@pytest.mark.parametrize("seed", range(30))
def test_whatever_a_count_is_changed_to_is_seen_and_shown_without_a_traceback(
    call: Call, tmp_path: Path, seed: int
) -> None:
    """One count of one row of one table, to a value of any size."""
    chance = np.random.default_rng(seed)

    def edit(turns: pd.DataFrame, steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        table = (turns, steps)[seed % 2]
        fields = ("steps", "undrafted_steps", "drafted", "accepted", "excess", "output_tokens", "turn", "seed")
        column = chance.choice(
            fields if table is turns else ("drafted", "accepted", "committed", "step", "turn", "seed")
        )
        row = int(chance.integers(len(table)))
        wrong = int(chance.choice([-1, 0, 7, 2**31 - 1, -(2**31)]))
        table.loc[row, column] = wrong if wrong != table.loc[row, column] else wrong + 1
        return turns, steps

    run = edited(tmp_path / "run", edit)
    assert books.identities(read_run(run))
    for arguments in (("validate", run), ("show", run), ("show", run, "--json")):
        code, out, err = call(*arguments)
        assert code == 1 and out and err == ""


def test_a_sound_run_that_is_read_is_the_run_that_is_stored() -> None:
    run, plain = books.read(SOUND), read_run(SOUND)
    assert run.meta == plain.meta and run.steps.equals(plain.steps) and run.turns.equals(plain.turns)
    assert books.problems(run) == [] and not replay.is_replay(run)


def test_a_kernel_that_left_its_tensors_is_a_problem_of_the_run() -> None:
    run = read_run(SOUND)
    segment = run.meta.segments[0]
    assert segment.counters is not None
    strayed = segment.model_copy(update={"counters": replace(segment.counters, kernel_strays=3)})
    order = list(dict.fromkeys(zip(run.turns["suite"], run.turns["conversation"], run.turns["seed"], strict=True)))
    before, after = (books.check(run.turns, run.steps, run.meta.spec, [one], order) for one in (segment, strayed))
    assert [line for line in after if line not in before] == [
        "vLLM's kernels read or wrote 3 times outside their tensors: what they made is unknown"
    ]
