"""A server is found however its address is written, without a proxy between, and its key is nowhere but there."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pytest
from support import contract
from support.standin import StandIn, order
from test_server import GENERATE, active, characters  # noqa: F401

from speceval import engines
from speceval.engines.server import address
from speceval.engines.server.client import Client
from speceval.engines.server.settings import addresses
from speceval.engines.vllm.serving import answers
from speceval.errors import UserError

KEY = "KEY_OF_A_TEST"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://h:8000/", "http://h:8000"),
        (" HTTP://H:8000// ", "http://h:8000"),
        ("http://h:80", "http://h"),
        ("http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("http://h:8000/metrics", "http://h:8000"),
        ("https://h/team/llm/v1/chat/completions", "https://h/team/llm"),
        ("http://h/team/", "http://h/team"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_an_address_has_one_form_however_it_is_written(written: str, meant: str) -> None:
    assert address.normal(written) == meant


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("h:8000", "an address such as"),
        ("unix:///tmp/socket", "an address such as"),
        ("http://h:99999", "no port 99999"),
        ("http://h:0", "no port 0"),
        ("http://h:port", "Invalid port"),
        ("http://::1:8000", "Invalid port"),
        ("http://h/?api=s3cret", "ends before"),
        ("http://h/#s3cret", "ends before"),
        ("http://s3cret@h", "holds a password"),
        ("http://me:s3cret@h:port", "--url: Invalid port"),
    ],
)
def test_an_address_that_is_none_or_holds_more_is_one_line_without_its_secret(written: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Client(written)
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_one_server_is_not_taken_for_two() -> None:
    with pytest.raises(UserError, match=r"names http://h:8000 twice"):
        addresses("http://h:8000,http://H:8000/v1")


def test_a_server_behind_a_prefix_is_asked_below_it() -> None:
    with StandIn(active()) as server:
        answer = server.answer
        server.answer = lambda path, headers, body: answer(path.removeprefix("/team"), headers, body)  # type: ignore[method-assign]
        with closing(engines.open(order(server, url=f"{server.url}/team/v1/"))) as engine:
            found = contract.finish(engine, contract.some(engine))
        assert found and {path for path, *_ in server.calls} >= {"/v1/models", "/metrics", GENERATE}


def test_an_address_of_the_sixth_version_is_reached() -> None:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:

        def serve() -> None:
            one, _ = listener.accept()
            one.recv(1 << 16)
            one.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")  # and no length: it ends as the connection does
            one.close()

        threading.Thread(target=serve, daemon=True).start()
        with closing(Client(f"http://[::1]:{listener.getsockname()[1]}")) as client:
            assert client.text("/version") == "hello"


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://x"])
def test_no_proxy_leads_to_this_machine(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with StandIn(active()) as server:
        for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
            with closing(Client(url)) as client:
                assert client.get("/version") == {"version": "0.32.0"}
        assert answers(server.url)  # as `speceval serve` waits for its own


def test_the_environment_s_proxy_leads_elsewhere_and_one_that_is_none_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with StandIn(active()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        with closing(Client("http://server.invalid")) as client, suppress(UserError):
            client.text("/version")
        assert [path for path, *_ in proxy.calls] == ["http://server.invalid/version"]
    for name, value in (("ALL_PROXY", "socks5://h:1"), ("HTTPS_PROXY", "nonsense://x"), ("SSL_CERT_FILE", "/none.pem")):
        with monkeypatch.context() as one:
            one.setenv(name, value)
            one.setenv(name.lower(), value)
            with pytest.raises(UserError, match=f"environment's .*{name}") as caught:
                Client("http://server.invalid")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("held", ["s3cr\u00e9t-key", "s3cret\nkey", "s3cret key", "s3cret\x01", "\u200bs3cret"])
def test_a_key_that_no_header_can_hold_is_one_line_without_it(held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, held)
    with pytest.raises(UserError, match=KEY) as caught:
        Client("http://127.0.0.1:9", key_variable=KEY)
    assert "s3c" not in str(caught.value)


@pytest.mark.parametrize("held", ["s3cret-key", "s3cret-key\r\n", "Bearer s3cret-key"])
def test_a_key_is_the_same_however_it_was_copied(held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, held)
    assert address.key(KEY) == "s3cret-key"


@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        (401, {}, b'{"error": {"message": "Incorrect API key: s3cret-key"}}'),
        (403, {}, b"Bearer s3cret-key may not"),
        (307, {"Location": "https://login/?next=s3cret-key"}, b""),
        (200, {}, b'data: {"error": {"message": "s3cret-key"}}\n\n'),
    ],
)
def test_a_server_that_says_a_key_is_quoted_without_it(
    status: int, headers: Any, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "s3cret-key")
    with StandIn(active()) as server:
        named = replace(order(server, api_key_env=KEY), timed=status == 200)
        with closing(engines.open(named)) as engine:
            server.faults[GENERATE] = [(status, headers, content)]
            with pytest.raises(UserError, match=r"\*\*\*") as caught:
                contract.finish(engine, {"r": ([97, 98, 99], contract.sampling())})
        assert {headers["Authorization"] for _, headers, _ in server.calls} == {"Bearer s3cret-key"}
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("given", "says"), [(None, "--api-key-env NAME sends a key"), (KEY, "is the key right")])
def test_a_server_that_wants_a_key_says_how_it_is_given(
    given: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "another-key")
    with StandIn(active()) as server, closing(Client(server.url, key_variable=given)) as client:
        server.faults["/v1/models"] = [(401, {}, b'{"error": "Unauthorized"}')]
        with pytest.raises(UserError, match=f"401 Unauthorized: .*{says}"):
            client.get("/v1/models")
