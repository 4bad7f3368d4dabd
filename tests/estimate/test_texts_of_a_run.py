"""outputs.jsonl is held against the tables: texts that were edited, lost or doubled are not passed on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.calling import caller

import speceval
from speceval.errors import UserError
from speceval.estimate import books
from speceval.measure import replay
from speceval.show.report.samples import read_outputs
from speceval.store import OUTPUTS, StoredRun, read_run, thoughts

Rows = list[dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredRun:
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text("".join(json.dumps({"turns": ["a", "b"], "id": n}) + "\n" for n in range(3)))
    speceval.run(
        "zoo", "lk-eagle3", temperature=1, suites=["own.jsonl"], k=3, max_tokens=6, engine="simulated", out="run"
    )
    return read_run(Path("run"))


def rewrite(run: StoredRun, change: Callable[[Rows], Rows]) -> None:
    path = run.directory / OUTPUTS
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def first(**fields: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [rows[0] | fields, *rows[1:]]


def test_texts_as_they_were_written_are_those_of_the_tables(run: StoredRun) -> None:
    assert books.texts(run) == [] and speceval.validate(run) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows + rows[:1], "turn 1: stands there twice"),
        (lambda rows: rows[1:], "lacks 1 of 6 turns"),
        (lambda rows: [], "lacks 6 of 6 turns"),
        (first(turn=9), "turn 9: was not measured"),
        (first(conversation="zz"), "conversation zz, seed 0, turn 1: was not measured"),
        (first(token_ids=[]), "0 tokens, "),
    ],
)
def test_other_texts_are_named_and_neither_replayed_nor_shown(
    run: StoredRun, monkeypatch, capfd, change: Callable[[Rows], Rows], told: str
) -> None:
    rewrite(run, change)
    assert told in books.texts(run)[0]
    code, out, _ = caller(monkeypatch, capfd)("validate", "run")
    assert code == 1 and told in out
    for use in (lambda: replay.source(run), lambda: read_outputs(run, [])):
        with pytest.raises(UserError, match=rf"^run: outputs\.jsonl: .*{told}"):
            use()


@pytest.mark.parametrize("thought", ["x", -5, 10**30, None, 1.5])
def test_a_thought_s_length_is_a_number_of_tokens(run: StoredRun, thought: Any) -> None:
    rewrite(run, first(thought_tokens=2))
    assert list(thoughts(run.directory).values()) == [2]
    rewrite(run, first(thought_tokens=thought))
    with pytest.raises(UserError, match=r"line 1 is damaged \(thought_tokens: "):
        thoughts(run.directory)
