"""`speceval run --replay`: what it takes from the run whose texts it uses, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speceval import cli
from speceval.measure import launch, record
from speceval.measure.job import Job
from speceval.store import read_run, recorded_columns

SOURCE = (
    "run",
    "--target",
    "zoo",
    "--draft",
    "lk-eagle3",
    "--engine",
    "simulated",
    "--suite",
    "own.jsonl",
    "--seeds",
    "0-1",
    "--max-tokens",
    "9",
)
AGAIN = ("run", "--target", "zoo", "--draft", "kl-eagle3", "--engine", "simulated", "--temp", "1", "--out", "again")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["speceval", *arguments])
    try:
        cli.main()
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> list[Job]:
    """A finished run in ./source; every job that gets as far as an engine afterwards."""
    jobs: list[Job] = []
    start = launch.start_engine

    def noted(job: Job) -> Any:
        jobs.append(job)
        return start(job)

    monkeypatch.setattr(launch, "start_engine", noted)
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text("".join(json.dumps({"turns": [f"question {n}", "and?"]}) + "\n" for n in range(3)))
    assert call(monkeypatch, *SOURCE, "--temp", "1", "--out", "source") == 0, capfd.readouterr().err
    capfd.readouterr()
    jobs.clear()
    return jobs


def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a refusal, which leaves nothing behind."""
    assert call(monkeypatch, *AGAIN, *arguments) == cli.EXIT_BAD_INPUT
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert not Path("again").exists()
    return err


def test_the_texts_and_all_that_shaped_them_are_the_source_s(monkeypatch, made: list[Job], capfd) -> None:
    call(monkeypatch, *AGAIN, "--k", "3", "--batch", "2", "--replay", "source")
    [job] = made
    assert job.spec.replay is not None and len(job.spec.replay) == 16
    assert (job.spec.suites, job.spec.seeds, job.spec.max_tokens) == (("own.jsonl",), (0, 1), 9)
    assert (job.spec.draft, job.spec.k, job.spec.batch) == ("kl-eagle3", 3, 2)
    outputs = [json.loads(line) for line in Path("source/outputs.jsonl").read_text().splitlines()]
    assert job.texts is not None and len(job.texts) == len(outputs) == 3 * 2 * 2
    for row in outputs:
        assert job.texts[row["suite"], row["conversation"], row["seed"], row["turn"]] == tuple(row["token_ids"])


def test_what_agrees_with_the_source_may_be_said(monkeypatch, made: list[Job], capfd) -> None:
    same = ("--seeds", "0,1", "--suite", "own.jsonl", "--max-tokens", "9", "--top-p", "1", "--top-k", "0")
    call(monkeypatch, *AGAIN, *same, "--replay", "source")
    assert len(made) == 1


@pytest.mark.parametrize(
    ("option", "value", "has"),
    [
        ("--temp", "0.5", "1.0"),
        ("--seeds", "0", r"\[0, 1\]"),
        ("--seeds", "1,0", r"\[0, 1\]"),
        ("--suite", "demo", "own.jsonl"),
        ("--limit", "2", "None"),
        ("--shuffle-seed", "1", "None"),
        ("--max-tokens", "8", "9"),
        ("--top-p", "0.9", "1.0"),
        ("--top-k", "8", "0"),
        ("--template-arg", "a=1", "{}"),
    ],
)
def test_a_conflicting_option_is_one_line_that_names_it(
    monkeypatch, made: list[Job], capfd, option: str, value: str, has: str
) -> None:
    import re

    line = refused(monkeypatch, capfd, option, value, "--replay", "source")
    assert re.search(f"{option}: the run that is replayed has .*{has}.*: leave it out", line)
    assert made == []


def test_a_replay_that_lost_its_record_is_no_measurement(monkeypatch, made: list[Job], capfd) -> None:
    """Steps without one count as if nothing had been accepted: the run says so and fails."""
    monkeypatch.setattr("speceval.engines.simulated._Request.recorded", lambda *_: None)
    assert call(monkeypatch, *AGAIN, "--replay", "source") == 1
    assert "PROBLEM: " in (out := capfd.readouterr().out) and "replayed steps have lost their record" in out


@pytest.mark.parametrize("option", [("--until", "1%"), ("--speedup",)], ids=str)
def test_options_about_a_free_run_are_refused(monkeypatch, made: list[Job], capfd, option: tuple[str, ...]) -> None:
    line = refused(monkeypatch, capfd, *option, "--replay", "source")
    assert f"{option[0]}: has no meaning with --replay" in line and made == []


def test_the_texts_of_another_target_are_refused(monkeypatch, made: list[Job], capfd) -> None:
    """They do not follow this target's law, so the chances along them would mean nothing."""
    path = Path("source/run.json")
    path.write_text(path.read_text().replace('"target": "zoo"', '"target": "other"'))
    assert "--target zoo: the texts of source are of other" in refused(monkeypatch, capfd, "--replay", "source")


def test_a_drafter_that_leaves_steps_out_can_be_replayed(monkeypatch, made: list[Job], capfd) -> None:
    assert call(monkeypatch, *AGAIN, "--draft", "ngram", "--k", "3", "--replay", "source") == 0, capfd.readouterr().err
    assert read_run(Path("again")).meta.problems == []


def test_at_temperature_0_a_draft_is_the_text_s_token_or_not(monkeypatch, made: list[Job], capfd) -> None:
    assert call(monkeypatch, *SOURCE, "--temp", "0", "--out", "greedy") == 0, capfd.readouterr().err
    arguments = [*AGAIN, "--temp", "0", "--k", "3", "--replay", "greedy"]
    assert call(monkeypatch, *arguments) == 0, capfd.readouterr().err
    run = read_run(Path("again"))
    kept = run.steps[recorded_columns(3, ("kept",))].to_numpy()
    assert set(kept[~np.isnan(kept)].tolist()) == {0.0, 1.0}
    assert run.meta.spec.temperature == 0 and run.meta.spec.drafting == "greedy" and run.meta.problems == []


def test_sources_that_cannot_be_replayed_are_refused(monkeypatch, made: list[Job], capfd) -> None:
    assert "no run here" in refused(monkeypatch, capfd, "--replay", "nowhere")
    Path("source/outputs.jsonl").rename("elsewhere")
    assert "--replay source: has no outputs.jsonl" in refused(monkeypatch, capfd, "--replay", "source")


def test_a_replay_of_a_replay_is_refused(monkeypatch, made: list[Job], capfd) -> None:
    call(monkeypatch, *AGAIN, "--replay", "source")
    capfd.readouterr()
    shutil.move("again", "replayed")
    assert "--replay replayed: is a replay itself" in refused(monkeypatch, capfd, "--replay", "replayed")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("engine", "dtype"), "bfloat16"),
        (("engine", "quantization"), "fp8"),
        (("target", "weights"), "a"),
        (("sampling", "top_k"), 3),
        (("prompts",), "other"),
        (("suites", "own", "dataset"), "other"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_texts_that_were_made_otherwise_are_refused_before_anything_is_measured(
    monkeypatch, made: list[Job], capfd, where: tuple[str, ...], value: Any
) -> None:
    """They have another law here. What one side cannot tell is no difference."""
    replay_as(
        monkeypatch, {("engine", "dtype"): "float32", ("engine", "quantization"): "none"} | {("target", "weights"): "b"}
    )
    edit(Path("source/run.json"), where, value)
    assert call(monkeypatch, *AGAIN, "--replay", "source") == cli.EXIT_BAD_INPUT
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[1].startswith("error: ") and err.count("\n") == 2
    assert f"{'.'.join(where)}: {value} -> " in err and "another law here" in err
    assert not Path("again/run.json").exists()


def test_texts_of_a_run_with_problems_are_refused(monkeypatch, made: list[Job], capfd) -> None:
    edit(Path("source/run.json"), ("problems",), ["accepted tokens are not what p and q say"])
    assert "its books do not balance" in refused(monkeypatch, capfd, "--replay", "source")


def test_a_text_that_the_target_cannot_have_said_is_a_problem_of_the_replay(
    monkeypatch, made: list[Job], capfd
) -> None:
    """The simulated target says letters; two tokens of the source's texts are none."""
    path = Path("source/outputs.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in [line for line in lines if len(line["token_ids"]) > 1][:2]:
        line["token_ids"][1] = ord("1")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert call(monkeypatch, *AGAIN, "--replay", "source") == 1
    assert "impossible for the target (p = 0)" in capfd.readouterr().out
    assert (read_run(Path("again")).steps["p_1"] == 0).sum() == 2


def edit(path: Path, where: tuple[str, ...], value: Any) -> None:
    """Put a value into a file of JSON; the run's hash goes with it."""
    content = json.loads(path.read_text())
    inner = content if where == ("problems",) else content["fingerprint"]
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    if where == ("problems",):
        content["status"] = "inconsistent"
    path.write_text(json.dumps(content))
    from speceval.store.schema import Fingerprint

    content["fingerprint_hash"] = Fingerprint.model_validate(content["fingerprint"]).hash
    path.write_text(json.dumps(content))


def replay_as(monkeypatch: pytest.MonkeyPatch, facts: dict[tuple[str, ...], str]) -> None:
    """Have runs from now on be of these facts."""
    make = record.make_fingerprint

    def told(*arguments: Any) -> Any:
        content = make(*arguments).model_dump(mode="json")
        for (*outer, name), value in facts.items():
            inner = content
            for part in outer:
                inner = inner[part]
            inner[name] = value
        return type(make(*arguments)).model_validate(content)

    monkeypatch.setattr(record, "make_fingerprint", told)
