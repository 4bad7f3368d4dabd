"""A running server is measured as an engine is; against a stand-in that answers in the shapes of vLLM 0.32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support import contract
from support.standin import StandIn, order
from typer.testing import CliRunner

import vllm_patches
from speceval import cli, engines
from speceval.engines.server import answers, engine, metrics, own, plain, settings
from speceval.engines.server import client as http
from speceval.engines.simulated import Characters
from speceval.errors import UserError
from speceval.store import read_run

GENERATE = engine.GENERATE
RUN = ["run", "--target", "zoo", "--draft", "lk-eagle3", "--k", "4", "--temp", "1", "--max-tokens", "20"]


def active() -> list[dict[str, str]]:
    return [asdict(replace(row, state="active", reason="")) for row in vllm_patches.status()]


@pytest.fixture(autouse=True)
def characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated engine's tokenizer, and no waiting between tries."""
    for module in (engine, plain):
        monkeypatch.setattr(module, "tokenizer_of", lambda order: Characters())
    monkeypatch.setattr(http, "LONGEST_PAUSE", 0.01)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(active()) as running:
        yield running


KEPT = [name for name in contract.ASSERTIONS if not name.startswith(("the_target_alone", "an_order_that_it_cannot"))]
"""All but: it serves what it serves."""


@pytest.mark.parametrize("assertion", KEPT)
def test_it_keeps_the_contract_of_engines(server: StandIn, assertion: str) -> None:
    rig = contract.Rig.__new__(contract.Rig)
    rig.order, rig._running = order(server), None
    with closing(rig):
        contract.ASSERTIONS[assertion](rig)


def run(server: StandIn, out: Path, *more: str) -> Any:
    return CliRunner().invoke(cli.app, [*RUN, "--url", server.url, "--out", str(out), *more])


def test_a_server_is_measured_from_the_command_line_and_its_totals_agree(server: StandIn, tmp_path: Path) -> None:
    done = run(server, tmp_path / "run", "--batch", "4")
    assert done.exit_code == 0, (done.output, done.exception)
    stored = read_run(tmp_path / "run")
    assert stored.meta.problems == [] and stored.meta.status == "complete" and stored.meta.evidence == "steps"
    (segment,) = stored.meta.segments
    assert segment.counters is not None and segment.counters.num_drafts == len(stored.steps) > 50
    assert stored.meta.spec.engine == "server" and stored.meta.fingerprint.engine.vllm == "0.32.0"


def test_a_server_of_its_own_is_measured_as_it_was_started_and_stopped(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--through-server`, with a stand-in for the process that it starts."""
    seen: list[str] = []

    class Started:
        def __init__(self, order: Any) -> None:
            self.url, self.name = server.url, "served"

        def __getattr__(self, name: str) -> Any:
            return lambda *_: seen.append(name)

    monkeypatch.setattr(own, "Server", Started)
    monkeypatch.setattr(own.OwnServerEngine, "require", lambda: None)
    done = CliRunner().invoke(cli.app, [*RUN, "--through-server", "--limit", "2", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, (done.output, done.exception)
    stored = read_run(tmp_path / "run")
    assert stored.meta.problems == [] and stored.meta.fingerprint.engine.generation_config == "vllm"
    assert seen == ["log_to", "wait", "stop"]


def test_answers_of_a_server_of_its_own_are_read_as_vllm_in_this_process_reads_them(
    server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started:
        def __init__(self, order: Any) -> None:
            self.url, self.name = server.url, "served"

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    monkeypatch.setattr(own, "Server", Started)
    monkeypatch.setattr(own.answers, "parser", lambda *what: what)
    for arguments, name in (({}, None), ({"reasoning_parser": "granite"}, "granite")):
        with closing(own.OwnServerEngine(replace(order(server), engine_args=arguments))) as measured:
            assert measured.parser({"a": 1}) == (name and (name, measured.tokenizer, {"a": 1}))
    with pytest.raises(UserError, match="tokenizer_mode=deepseek_v32: prompts are rendered on this side"):
        own.OwnServerEngine(replace(order(server), engine_args={"tokenizer_mode": "deepseek_v32"}))


def test_what_others_ask_of_it_meanwhile_is_noticed(server: StandIn, tmp_path: Path) -> None:
    server.shared = 1
    done = run(server, tmp_path / "run")
    assert done.exit_code == 0, (done.output, done.exception)
    meta = read_run(tmp_path / "run").meta
    assert meta.problems == [] and meta.segments[-1].counters is None
    assert any("others used the server meanwhile" in note for note in meta.notes)


def test_a_server_that_works_for_others_is_not_measured(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SECONDS_TO_REST", 1)
    server.busy = 2
    with closing(engines.open(order(server))) as measured, pytest.raises(UserError, match="2 requests of others"):
        measured.warm_up()


def ask(server: StandIn, faults: Sequence[Any] = (), **arguments: Any) -> Any:
    """The answer to one request; `faults` come in place of the first answers."""
    with closing(engines.open(order(server, **arguments))) as measured:
        server.faults[GENERATE] = list(faults)
        server.calls.clear()
        return contract.finish(measured, {"r": ([97, 98, 99], contract.sampling())})["r"]


@pytest.mark.parametrize("busy", [(429, {"Retry-After": "7"}, b"{}"), (503, {}, b"starting")])
def test_a_request_that_was_turned_away_is_sent_again_and_counted_once(server: StandIn, busy: Any) -> None:
    answer = ask(server, [busy, busy])
    assert sum(path == GENERATE for path, *_ in server.calls) == 3
    assert server.answered == 2 and len(answer.steps)  # the trial, and this one


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((429, {}, b"{}"), "429"),
        ((500, {}, b'{"error": {"message": "out of memory"}}'), "500 out of memory"),
        ((403, {}, b'{"detail": "Scale-out endpoints are disabled"}'), "403 Scale-out.*--enable-scale-out"),
        ((200, {}, b'{"choices": [{"tok'), "no JSON.*the same command resumes"),
        ((200, {"Content-Length": "90"}, b'{"choices"'), "the same command resumes"),
        ((200, {}, b'{"choices": []}'), "is it vLLM's"),
        ((307, {"Location": "http://elsewhere.example/"}, b""), "redirects to http://elsewhere.example/"),
    ],
)
def test_an_answer_that_is_none_is_one_line(server: StandIn, reply: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        ask(server, [reply] * http.TRIES, timeout=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [{}, {"Connection": "close"}], ids=["stalled", "died"])
def test_a_request_that_broke_off_is_not_sent_again(server: StandIn, ending: dict[str, str]) -> None:
    with pytest.raises(UserError):
        ask(server, [(200, {"Content-Length": "90", **ending}, b'{"choices"')], timeout=1)
    assert sum(path == GENERATE for path, *_ in server.calls) == 1


def test_the_key_is_sent_to_the_server_and_is_in_no_file(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "s3cret-value")
    done = run(server, tmp_path / "run", "--api-key-env", "THE_KEY")
    assert done.exit_code == 0, done.output
    assert all(headers["Authorization"] == "Bearer s3cret-value" for _, headers, _ in server.calls)
    assert "s3cret-value" not in done.output
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret-value" in path.read_bytes()]


def test_a_redirect_gets_no_second_request(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "s3cret-value")
    with StandIn(active()) as other:
        server.faults["/v1/models"] = [(302, {"Location": f"{other.url}/v1/models"}, b"")]
        with pytest.raises(UserError, match="redirects"):
            engines.open(order(server, api_key_env="THE_KEY"))
        assert other.calls == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"api_key_env": "NO_SUCH_KEY"}, "--api-key-env NO_SUCH_KEY: .* not set"),
        ({"url": "localhost:8000"}, "an address such as"),
        ({"url": "http://me:word@host"}, "--url: holds a password"),
        ({"url": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"model": "other"}, "serves served: --engine-arg model=other: is not there"),
        ({"no_such": 1}, "--engine-arg no_such"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(server: StandIn, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        engines.open(order(server, **arguments))
    assert "\n" not in str(caught.value) and "word" not in str(caught.value).replace("password", "")


def test_a_server_that_drafts_otherwise_is_not_measured() -> None:
    with StandIn(active(), method="mtp") as other, pytest.raises(UserError, match="is eagle3, the server drafts with"):
        engines.open(order(other))
    with StandIn(active(), closed=("/collective_rpc",)) as closed, pytest.raises(UserError, match="replay: needs"):
        engines.open(replace(order(closed), record=False, replay=True))


@pytest.mark.parametrize(
    ("tokens", "drafted", "accepted", "committed"),
    [
        (6, [4, 4], [2, 1], [3, 2]),
        (5, [4, 4], [2, 3], [3, 1]),  # the last is cut
        (6, [4], [2], [3, 1, 1]),  # two steps drafted nothing
        (1, [], [], []),
        (3, [], [], [1, 1]),
    ],
)
def test_steps_are_rebuilt_from_the_server_s_arrays(
    tokens: int, drafted: list[int], accepted: list[int], committed: list[int]
) -> None:
    steps = answers.steps_of(tokens, drafted, accepted)
    assert [step.committed for step in steps] == committed and sum(committed) == tokens - 1
    assert [step.accepted for step in steps if step.drafted] == accepted


def test_totals_are_summed_over_the_replicas_of_a_server() -> None:
    page = "\n".join(
        f'vllm:spec_decode_num_{name}_total{{engine="{number}"{position}}} {count}'
        for number in (0, 1)
        for name, position, count in [
            ("drafts", "", "3.0"), ("accepted_tokens", "", "4.0"),
            ("accepted_tokens_per_pos", ',position="0"', "3.0"), ("accepted_tokens_per_pos", ',position="1"', "1.0"),
        ]
    )  # fmt: skip
    counted = metrics.counters(page)
    assert (counted.num_drafts, counted.num_accepted_tokens) == (6, 8)
    assert counted.num_accepted_tokens_per_pos == [6, 2]


def test_greedy_requests_are_measured_whatever_way_the_server_draws_its_drafts(server: StandIn, tmp_path: Path) -> None:
    """At temperature 0 a draw is the likeliest token: it is the run of a server with greedy drafts. Above it is not."""
    with StandIn(active(), draft_sample_method="greedy") as greedy:
        for name, one in (("probabilistic", server), ("greedy", greedy)):
            done = run(one, tmp_path / name, "--temp", "0")
            assert done.exit_code == 0, (done.output, done.exception)
            assert read_run(tmp_path / name).meta.problems == []
        refused = run(greedy, tmp_path / "sampled")
    assert "resolved draft_sample_method to 'greedy', asked for 'probabilistic'" in str(refused.exception)
    names = [str(tmp_path / name) for name in ("greedy", "probabilistic")]
    compared = CliRunner().invoke(cli.app, ["compare", *names])
    assert compared.exit_code == 0 and "ALLOWED" not in compared.output, compared.exception
