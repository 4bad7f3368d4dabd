"""Whatever a server answers, a run ends in one line that no terminal obeys, or in numbers that agree."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from support import contract
from support.other_servers import NEW, LlamaCpp, Other, SGLang
from support.standin import StandIn, order
from test_server import GENERATE, active, characters  # noqa: F401

from speceval import engines
from speceval.engines.server import client as http
from speceval.engines.server.client import Client
from speceval.errors import UserError

pytestmark = pytest.mark.slow


HOSTILE: tuple[Any, ...] = (
    None, -1, 0, 1 << 70, 1.5, float("nan"), True, "", "\x1b[31mred\n\x07", "9" * 5000, [], {}, [None], [[[]]], {"a": 1}
)  # fmt: skip
SERVERS: dict[str, Callable[[], StandIn]] = {
    "vllm": lambda: StandIn(active()),
    "vllm without workers": lambda: StandIn([], closed=("/collective_rpc",)),
    "vllm histogram": lambda: StandIn([], "summary", closed=("/collective_rpc",)),
    "vllm totals": lambda: StandIn([], False, closed=("/collective_rpc",)),
    "sglang": lambda: SGLang(NEW),
    "llamacpp": LlamaCpp,
    "openai": Other,
}
MANY = pytest.param(range(3, 60), marks=[pytest.mark.slow, pytest.mark.long], id="many")


def mutated(content: Any, chance: random.Random) -> Any:
    """A copy with one of its values, at any depth, gone or another one."""
    places: list[tuple[Any, Any]] = []
    whole = [json.loads(json.dumps(content))]

    def walk(part: Any) -> None:
        for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            places.append((part, key))
            walk(part[key])

    walk(whole)
    part, key = chance.choice(places)
    if isinstance(part, dict) and chance.random() < 0.2:
        del part[key]
    else:
        part[key] = chance.choice(HOSTILE)
    return whole[0]


def text(page: str, chance: random.Random) -> str:
    """A page of metrics, or a stream, with one of its lines changed."""
    lines = page.split("\n")
    number = chance.randrange(len(lines))
    head, _, _ = lines[number].rpartition(" ")
    if lines[number].startswith("data: {"):
        lines[number] = f"data: {json.dumps(mutated(json.loads(lines[number][6:]), chance))}"
    else:
        lines[number] = f"{head} {chance.choice(('NaN', '-3', 'inf', '', '1e400', '{', chr(27)))}"
    return "\n".join(lines)


def measure(server: StandIn, timed: bool) -> None:
    """Open an engine, finish three requests, read the totals."""
    with closing(engines.open(replace(order(server, timeout=5), timed=timed))) as engine:
        engine.facts(), engine.notes(), engine.patches(), engine.drafter()
        engine.warm_up()
        before = engine.counters()
        found = contract.finish(engine, contract.some(engine))
        for one in found.values():
            assert all(type(token) is int and 0 <= token < 1 << 31 for token in one.token_ids)
            assert one.finish_reason.isidentifier()
            assert sum(step.committed for step in one.steps) == max(len(one.token_ids) - 1, 0)
            assert all(0 <= step.accepted <= step.drafted <= 4 for step in one.steps)
            assert one.cached_tokens >= 0
        now = engine.counters()
        if now is not None and before is not None:
            now.minus(before)
        assert isinstance(engine.foreign(), str)


@pytest.mark.parametrize("seeds", [pytest.param(range(3), id="few"), MANY])
@pytest.mark.parametrize("timed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", SERVERS)
def test_any_answer_with_one_wrong_value_is_refused_in_one_line_or_makes_sound_numbers(
    kind: str, timed: bool, seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speceval.engines.server import settings

    monkeypatch.setattr(settings, "SECONDS_TO_REST", 1)
    monkeypatch.setattr(settings.time, "sleep", lambda _: None)
    refused = 0
    for seed in seeds:
        chance = random.Random(f"{kind} {timed} {seed}")
        with SERVERS[kind]() as server:
            answer, left = server.answer, [chance.randrange(14)]

            def spoiled(
                path: str, headers: Any, body: Any, answer: Any = answer, left: Any = left, chance: Any = chance
            ) -> Any:
                status, more, content = answer(path, headers, body)
                left[0] -= 1
                if status != 200 or left[0] != 0 or not content:
                    return status, more, content
                try:
                    return status, more, json.dumps(mutated(json.loads(content), chance)).encode()
                except ValueError:
                    return status, more, text(content.decode(), chance).encode()

            server.answer = spoiled  # type: ignore[method-assign]
            try:
                measure(server, timed)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 1500, (seed, error)
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert refused or len(seeds) < 10


@contextmanager
def raw(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that answers whatever it likes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                one, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_quietly, args=(answer, one), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _quietly(answer: Callable[[socket.socket], None], one: socket.socket) -> None:
    try:
        one.recv(1 << 16)
        answer(one)
        one.shutdown(socket.SHUT_WR)
        while one.recv(1 << 16):  # a close before all was read would take the answer back
            pass
    except OSError:
        pass
    finally:
        one.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def drip(one: socket.socket) -> None:
    """A byte now and then, for ever: no pause is as long as a stall."""
    one.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        one.sendall(b"1\r\n:\r\n1\r\n\n\r\n")
        threading.Event().wait(0.05)


def flood(one: socket.socket) -> None:
    """An answer without an end."""
    one.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    block = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    while True:
        one.sendall(block)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (drip, "stalled"),
        (flood, "an answer without an end|a line without an end"),
        (lambda one: one.sendall(b"HTTP/9.9 hello\r\n\r\n"), "broke off"),
        (lambda one: one.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"), "broke off"),
        (lambda one: one.sendall(HEAD + b"Content-Length: 9\r\n\r\n{"), "broke off"),
        (lambda one: one.sendall(HEAD + b"\r\ndata: " + b"[" * 100_000), "no JSON"),
        (lambda one: one.sendall(HEAD + b"Content-Length: 2\r\n\r\n\xff\xfe"), "no JSON|nothing that is a stream"),
        (lambda one: one.sendall(b"HTTP/1.1 500 bad\r\n\r\nline\nline\x1b[2J"), "500 line line"),
    ],
)
def test_what_is_no_answer_is_one_line(
    answer: Callable[[socket.socket], None], says: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LARGEST", 1 << 20)
    monkeypatch.setattr(http, "LONGEST_LINE", 1 << 20)
    with raw(answer) as url, closing(Client(url, seconds=0.5)) as client:
        call = client.begin_stream("/x", {}, 10) if stream else client.begin("/x", {})
        with pytest.raises(UserError, match=says) as caught:
            call.result(20)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("after", ["nan", "-5", "inf", "1e999", "Wed, 21 Oct 2099 07:28:00 GMT", ""])
def test_any_retry_after_is_a_pause_that_ends(after: str) -> None:
    assert 0 <= http._pause(after, 1) <= http.LONGEST_PAUSE
    with StandIn(active()) as server, closing(engines.open(order(server))) as engine:
        server.faults[GENERATE] = [(503, {"Retry-After": after}, b"{}")]
        found = contract.finish(engine, {"r": ([97, 98, 99], contract.sampling())})
    assert found["r"].token_ids


@pytest.mark.parametrize("timed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_key_is_not_sent_to_where_an_answer_points(status: int, timed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_A_TEST", "s3cret")
    with StandIn(active()) as server, StandIn(active()) as elsewhere:
        named = replace(order(server, api_key_env="KEY_OF_A_TEST"), timed=timed)
        with closing(engines.open(named)) as engine:
            server.faults[GENERATE] = [(status, {"Location": f"{elsewhere.url}/a"}, b"")]
            with pytest.raises(UserError, match="redirects to") as caught:
                contract.finish(engine, {"r": ([97, 98, 99], contract.sampling())})
        assert elsewhere.calls == [] and "s3cret" not in str(caught.value)
        assert any(headers.get("Authorization") == "Bearer s3cret" for _, headers, _ in server.calls)


def test_no_text_of_a_server_reaches_the_terminal_as_a_command() -> None:
    from typer.testing import CliRunner

    from speceval import cli

    with StandIn(active()) as server:
        content = server._content

        def hostile(path: str, body: Any) -> Any:
            if path == "/v1/models":
                return {"data": [{"id": "a\x1b]0;owned\x07\nb"}, {"id": "c\u202e"}]}
            return content(path, body)

        server._content = hostile  # type: ignore[method-assign]
        done = CliRunner().invoke(cli.app, ["probe", server.url])
    assert isinstance(done.exception, UserError)
    assert not re.search(r"[\x00-\x1f\x7f\u202e]", str(done.exception)), repr(str(done.exception))
