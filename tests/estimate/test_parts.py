"""Parts of the answers: each step is in the one where it starts, and table and gate take one by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import speceval
from speceval import UserError
from speceval.cli import app
from speceval.estimate.parts import Part, of_part, parse
from speceval.store import thoughts


def steps_of(committed: dict[str, list[int]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [
        ("s", name, 0, 1, number, 4, tokens - 1, tokens)
        for name, counts in committed.items()
        for number, tokens in enumerate(counts, start=1)
    ]
    names = ["suite", "conversation", "seed", "turn", "step", "drafted", "accepted", "committed"]
    turns = pd.DataFrame([("s", name, 0, 1, 10) for name in committed], columns=[*names[:4], "prompt_tokens"])
    return pd.DataFrame(rows, columns=names), turns


# Steps of "a" start with 1, 4, 5 and 7 tokens there, those of "b" with 1 and 2.
STEPS, TURNS = steps_of({"a": [3, 1, 2, 2], "b": [1, 4]})


@pytest.mark.parametrize(
    ("part", "chosen"),
    [
        ("thought", [("a", 1), ("a", 2)]),
        ("answer", [("a", 3), ("a", 4)]),
        ("output:2-5", [("a", 2), ("a", 3), ("b", 2)]),
        ("output:5-", [("a", 3), ("a", 4)]),
        ("context:11-14", [("a", 1), ("a", 2), ("b", 1), ("b", 2)]),
    ],
)
def test_a_step_is_in_the_part_where_it_starts(part: str, chosen: list[tuple[str, int]]) -> None:
    found = of_part(parse(part, "--only"), STEPS, TURNS, {("s", "a", 0, 1): 5})
    assert list(zip(found["conversation"], found["step"], strict=True)) == chosen


def test_a_part_is_written_as_it_is_read() -> None:
    assert parse("output:2-", "") == Part("output", 2) and str(parse("context:0-9", "")) == "context:0-9"


@pytest.mark.parametrize("text", ["thoughts", "output", "output:", "output:a-b", "context:9-1", "output:-5", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--only"):
        parse(text, "--only")


def run(folder: Path, name: str, rates: float) -> speceval.Run:
    """A run whose answers begin with a thought of ten tokens, as its outputs tell."""
    asked: dict[str, Any] = {"temperature": 1, "engine": "simulated", "suites": ["demo"], "max_tokens": 40, "k": 3}
    args = {"rates": rates, "end": 0}
    stored = speceval.run("zoo", "kl-eagle3", engine_args=args, seeds=range(4), out=folder / name, **asked)
    path = stored.directory / "outputs.jsonl"
    lines = [json.loads(line) | {"thought_tokens": 10} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return stored


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[speceval.Run, speceval.Run]:
    folder = tmp_path_factory.mktemp("runs")
    return run(folder, "good", 0.7), run(folder, "bad", 0.5)


def test_the_table_of_lengths_has_tau_of_thoughts_and_of_answers(runs: tuple[speceval.Run, speceval.Run]) -> None:
    rows = {row["category"]: row for row in speceval.table(runs[0], layout="lengths").records if row["value"]}
    told = thoughts(runs[0].directory)
    assert len(told) == 96 and set(told.values()) == {10}
    parts = [of_part(Part(kind), runs[0].steps, runs[0].turns, told) for kind in ("thought", "answer")]
    assert sum(map(len, parts)) == len(runs[0].steps)
    for kind, steps in zip(("thought", "answer"), parts, strict=True):
        assert rows[kind]["value"] == pytest.approx(1 + steps["accepted"].mean())


def test_the_gate_judges_a_part_by_itself(runs: tuple[speceval.Run, speceval.Run], tmp_path: Path) -> None:
    good, bad = runs
    for only in ("thought", "answer", "output:8-", "context:1-100000", None):
        report = speceval.check(bad, good, margin=0.02, only=only)
        assert report.verdict == "fail" and speceval.check(good, good, only=only).verdict != "fail", only
    whole, part = (speceval.check(bad, good, only=only).suites[0] for only in (None, "thought"))
    assert part.base_tau != whole.base_tau
    done = CliRunner().invoke(
        app, ["check", str(bad.directory), "--baseline", str(good.directory), "--only", "output:1-7"]
    )
    assert done.exit_code == 1 and "Only the steps of output:1-7 count." in " ".join(done.stdout.split())


def test_a_part_needs_single_steps_and_some_of_them(runs: tuple[speceval.Run, speceval.Run], tmp_path: Path) -> None:
    good, bad = runs
    with pytest.raises(UserError, match="has no steps in only output:900-"):
        speceval.check(bad, good, only="output:900-")
    file = tmp_path / "base.json"
    assert CliRunner().invoke(app, ["baseline", str(good.directory), "-o", str(file)]).exit_code == 0
    with pytest.raises(UserError, match="a file has no single steps"):
        speceval.check(bad, file, only="thought")
