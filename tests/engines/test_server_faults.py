"""What goes wrong with a server in the middle of a run costs no conversation and counts none twice."""

from __future__ import annotations

import gc
import re
import ssl
import subprocess
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import contract
from support.standin import StandIn, order
from test_docs import script
from test_server import GENERATE, active, characters, run  # noqa: F401

from speceval import engines
from speceval.engines.server import client as http
from speceval.engines.server.client import Client, Gone, Refused
from speceval.errors import UserError
from speceval.store import read_run


def test_a_server_that_is_killed_and_restarted_costs_one_line_and_the_same_command_resumes(tmp_path: Path) -> None:
    """Its totals begin anew with it: each stretch is held against its own."""
    out = tmp_path / "run"
    with StandIn(active()) as first:
        first.left = 12
        died = run(first, out, "--batch", "2")
        port = first.port
    assert isinstance(died.exception, UserError) and "\n" not in str(died.exception)
    assert "the same command resumes" in str(died.exception)
    kept = read_run(out)
    assert 0 < kept.conversations < 24 and kept.meta.status == "running"
    with StandIn(active(), port=port) as second:
        assert second.url == f"http://127.0.0.1:{port}"
        done = run(second, out, "--batch", "2")
        assert done.exit_code == 0, (done.output, done.exception)
        asked = second.answered - 1  # the trial
    whole = read_run(out)
    assert whole.meta.problems == [] and whole.conversations == 24
    assert asked == 24 - kept.conversations + 1  # what was finished is not asked again; the warm-up is


@pytest.mark.parametrize("workers", [True, False], ids=["workers", "plain"])
def test_a_run_does_not_go_on_with_another_model_or_drafter_at_the_same_address(tmp_path: Path, workers: bool) -> None:
    closed = () if workers else ("/collective_rpc",)

    def information(draft: str) -> dict[str, Any]:
        return {"model_config": {"model": "org/target"}, "speculative_config": {"model": draft, "method": "eagle3"}}

    with StandIn(active(), closed=closed) as first:
        first.left, first.information = 12, information("/models/draft")
        assert isinstance(run(first, tmp_path / "run", "--batch", "2").exception, Gone)
    text = (tmp_path / "run" / "run.json").read_text()
    assert "/models" not in text and '"org/target"' in text  # no place on the server's machine
    for model, draft, says in (
        ("served", "/models/other", r"served\.draft: draft \(\w+\) -> other \(\w+\)"),
        ("another", "/models/draft", r"served\.model: served -> another"),
        ("served", "/models/draft", ""),
    ):
        with StandIn(active(), closed=closed, port=first.port) as second:
            content = second._content
            second.information = information(draft)
            second._content = lambda path, body, content=content, model=model: (  # type: ignore[method-assign]
                {"data": [{"id": model}]} if path == "/v1/models" else content(path, body)
            )
            done = run(second, tmp_path / "run", "--batch", "2")
        assert done.exit_code == bool(says) and re.search(says, str(done.exception)), done.exception
    assert read_run(tmp_path / "run").conversations == 24


def test_a_certificate_that_is_not_trusted_is_one_line_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_pause", lambda *_: pytest.fail("it was tried again"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        with closing(Client(f"https://localhost:{server.server_port}")) as client:
            with pytest.raises(UserError, match=r"cannot be reached.*CERTIFICATE.*SSL_CERT_FILE=FILE") as caught:
                client.text("/version")
            assert "\n" not in str(caught.value)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        trusting = closing(Client(f"https://localhost:{server.server_port}"))
        with trusting as client, pytest.raises(Refused, match="501"):  # it speaks, and knows no GET
            client.text("/version")
    finally:
        server.shutdown()
        server.server_close()


def test_an_encrypted_address_of_a_server_that_does_not_encrypt_is_one_line_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_pause", lambda *_: pytest.fail("it was tried again"))
    with StandIn(active()) as server:
        encrypted = closing(Client(server.url.replace("http:", "https:")))
        with encrypted as client, pytest.raises(Gone, match=r"cannot be reached.*SSL"):
            client.text("/version")


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    files = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made = subprocess.run([*command, "-out", files[0], "-keyout", files[1]], capture_output=True)
    if made.returncode:
        pytest.skip("openssl made no certificate")
    return files


def test_calls_that_are_out_end_at_once_when_the_engine_is_closed() -> None:
    """A server that has stalled keeps nobody: neither Ctrl-C nor the end of the process."""
    with StandIn(active()) as server:
        engine = engines.open(order(server))
        server.stall.clear()
        engine.submit("r", [97, 98], contract.sampling())
        closing_ = threading.Thread(target=engine.close)
        closing_.start()
        closing_.join(10)
        hangs = closing_.is_alive()
        server.stall.set()
    assert not hangs


@pytest.mark.slow
@pytest.mark.long
def test_ten_thousand_requests_at_256_leave_no_memory_behind() -> None:
    """The second five thousand hold no more than the first: nothing of a finished request is kept.

    One that were kept would be an object at least, and some 4 kB of its answer.
    """
    bench = script("bench_server")
    with subprocess.Popen([sys.executable, bench.__file__, "stub"], stdout=subprocess.PIPE, text=True) as stub:
        try:
            assert stub.stdout is not None
            url = f"http://127.0.0.1:{int(stub.stdout.readline())}"
            with closing(Client(url, connections=256)) as client:
                objects, memory = [], []
                for _ in range(2):
                    calls = [client.begin(GENERATE, bench.BODY) for _ in range(5000)]
                    while calls:
                        assert calls.pop().result()["choices"]
                    gc.collect()
                    objects.append(len(gc.get_objects()))
                    memory.append(resident())
        finally:
            stub.kill()
    assert objects[1] - objects[0] < 1000, objects
    assert memory[1] - memory[0] < 10, memory


def resident() -> float:
    """Megabytes that this process has in memory now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024
