"""Several addresses at once: conversations over all of them, one setting for all, none lost or counted twice."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.standin import StandIn
from test_server import GENERATE, RUN, active, characters  # noqa: F401
from typer.testing import CliRunner

from speceval import cli
from speceval.engines.server import client as http
from speceval.errors import UserError
from speceval.store import read_run

pytestmark = pytest.mark.slow


INFORMATION = {
    "model_config": {"model": "/models/target"},
    "speculative_config": {"model": "/models/draft", "method": "eagle3", "num_speculative_tokens": 4},
}


def run(servers: list[StandIn], out: Path, *more: str) -> Any:
    url = ",".join(server.url for server in servers)
    return CliRunner().invoke(cli.app, [*RUN, "--url", url, "--out", str(out), *more])


def texts(out: Path) -> list[str]:
    return sorted((out / "outputs.jsonl").read_text().splitlines())


@pytest.mark.parametrize("grade", [True, "summary"])
def test_conversations_are_shared_and_every_server_is_reconciled(tmp_path: Path, grade: Any) -> None:
    with StandIn(active(), grade) as one, StandIn(active(), grade) as two:
        done = run([one, two], tmp_path / "run", "--batch", "2", "--rate", "inf")
        assert done.exit_code == 0, (done.output, done.exception)
        asked = [Counter(path for path, *_ in server.calls)[GENERATE] for server in (one, two)]
    stored = read_run(tmp_path / "run")
    assert stored.conversations == 24 and stored.meta.problems == []
    assert stored.meta.segments[-1].counters is not None
    assert min(asked) > 6 and "at most 4 requests at once" in done.output


def test_two_servers_that_differ_are_not_measured_together(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"max_num_seqs": 4}, {}, "max_num_seqs: 8 -> 4"),
        ({}, {"version": "0.33.0"}, "version: 0.32.0 -> 0.33.0"),
        ({}, {"draft": "/models/other"}, "draft: /models/draft -> /models/other"),
        ({}, {"target": "/models/other"}, "target: /models/target -> /models/other"),
        ({}, {"patch": "switched off"}, r"patch \S+: active -> switched off"),
        ({}, {"grade": "summary"}, "evidence: steps -> histogram"),
    ]
    for settings, other, says in cases:
        with StandIn(active()) as one, StandIn(active(), other.get("grade", True), **settings) as two:
            one.information, two.information = INFORMATION, {**INFORMATION}
            if "draft" in other:
                two.information["speculative_config"] = INFORMATION["speculative_config"] | {"model": other["draft"]}
            if "target" in other:
                two.information["model_config"] = {"model": other["target"]}
            if "patch" in other:
                two.patches = [row | {"state": other["patch"]} if n == 0 else row for n, row in enumerate(two.patches)]
            if "version" in other:
                content = two._content
                two._content = lambda path, body, content=content: (  # type: ignore[method-assign]
                    {"version": "0.33.0"} if path == "/version" else content(path, body)
                )
            done = run([one, two], tmp_path / "run")
        assert isinstance(done.exception, UserError), (says, done.output)
        assert "are not the same" in str(done.exception)
        import re

        assert re.search(says, str(done.exception)), done.exception
        assert "\n" not in str(done.exception) and not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("how", ["breaks", "answers 500", "goes away"])
def test_what_a_dead_server_had_goes_to_the_others_and_none_is_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(http, "TRIES", 2)
    with StandIn(active()) as one, StandIn(active()) as two:
        respond, left = two._generate, [9]

        def dying(body: dict[str, Any]) -> dict[str, Any]:
            left[0] -= 1
            if left[0] < 0:
                if how == "goes away":
                    two._http.socket.close()
                raise ConnectionError("killed")
            return respond(body)

        if how == "answers 500":
            two.faults[GENERATE] = []
            answer = two.answer

            def failing(path: str, headers: dict[str, str], body: Any) -> Any:
                left[0] -= path == GENERATE
                return (500, {}, b'{"error": "EngineDeadError"}') if left[0] < 0 else answer(path, headers, body)

            two.answer = failing  # type: ignore[method-assign]
        else:
            two._generate = dying  # type: ignore[method-assign]
        done = run([one, two], tmp_path / "run", "--batch", "2")
        assert done.exit_code == 0, (done.output, done.exception)
        url = two.url
    stored = read_run(tmp_path / "run")
    assert stored.conversations == 24 and stored.meta.problems == [] and stored.meta.status == "complete"
    (note,) = [note for note in stored.meta.notes if "was lost" in note]
    assert note.startswith(f"{url} was lost, its conversations went to the other servers") and "resumes" not in note
    assert not stored.turns.duplicated(["suite", "conversation", "seed", "turn"]).any()
    assert stored.meta.segments[-1].counters is None


def test_the_last_server_that_dies_ends_the_run_in_one_line_and_the_same_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TRIES", 1)
    with StandIn(active()) as one, StandIn(active()) as two:
        one.left, two.left = 9, 7
        died = run([one, two], tmp_path / "run", "--batch", "2")
        assert isinstance(died.exception, UserError) and "the same command resumes" in str(died.exception)
        kept = read_run(tmp_path / "run").conversations
        assert 0 < kept < 24
        one.left = two.left = math.inf
        done = run([one, two], tmp_path / "run", "--batch", "2")
        assert done.exit_code == 0, (done.output, done.exception)
    assert read_run(tmp_path / "run").conversations == 24


def test_a_server_that_counts_otherwise_than_its_requests_is_named(tmp_path: Path) -> None:
    """Two faults that cancel in the sum are seen: each server is held against its own."""
    with StandIn(active()) as one, StandIn(active()) as two:
        for server, shift in ((one, 3), (two, -3)):
            metrics = server._metrics

            def shifted(metrics: Any = metrics, server: StandIn = server, shift: int = shift) -> str:
                page, steps = metrics(), server.engine.counters().num_drafts
                late = shift if server.answered > 4 else 0
                return page.replace(f'"}} {steps}.0', f'"}} {steps + late}.0', 1)

            server._metrics = shifted  # type: ignore[method-assign]
        done = run([one, two], tmp_path / "run", "--batch", "2")
    problems = read_run(tmp_path / "run").meta.problems
    assert done.exit_code == 1
    assert len(problems) == 2 and all("its requests give" in line and "num_drafts" in line for line in problems)


@pytest.mark.parametrize(
    ("url", "says"), [("{0},{0}/", "twice"), (",", "names no address"), ("{0},nowhere", "address such as")]
)
def test_addresses_that_are_none_are_one_line(tmp_path: Path, url: str, says: str) -> None:
    with StandIn(active()) as server:
        done = CliRunner().invoke(cli.app, [*RUN, "--url", url.format(server.url), "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, UserError) and says in str(done.exception)
    assert not (tmp_path / "run" / "run.json").exists()


def test_one_server_s_law_is_tested_at_a_time() -> None:
    words = ["verify", "--target", "zoo", "--draft", "lk-eagle3", "--url", "http://a:1,http://b:1"]
    assert "name one address" in str(CliRunner().invoke(cli.app, words).exception)
