"""`speceval serve`: vLLM's own server, started by us, is measured over HTTP to the token and to the bit."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import served
from support.served import ENVIRONMENT

from speceval.engines.vllm import server_process, serving
from speceval.engines.vllm.serving import answers
from speceval.store import read_run

SCRIPT = Path(served.__file__)


LOW_LIMIT = (
    "(APIServer pid=1) WARNING 11-26 20:04:02 [system_utils.py:255] Found ulimit of 20000 and failed to automatically "
    "increase. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`. Consider increasing"
)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["(pid=1) ValueError: no K", "RuntimeError: Engine core initialization failed."], "ValueError: no K"),
        (["api_server.py: error: unrecognized arguments: --x"], "api_server.py: error: unrecognized arguments: --x"),
        ([LOW_LIMIT, "ValueError: block is biased"], "ValueError: block is biased"),
        ([LOW_LIMIT[len("(APIServer pid=1) ") :]], "it ended with exit code 3, and its log says why"),
        (["(pid=1) ERROR 11-26 20:04:02 [core.py:1] OSError: no file"], "OSError: no file"),
        (["INFO loading"], "it ended with exit code 3, and its log says why"),
    ],
)  # fmt: skip
def test_why_a_server_ended_is_told_in_a_line(lines: list[str], says: str) -> None:
    assert serving.reason(lines, 3) == says


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    import socket

    from speceval.errors import UserError

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: Address already in use: name another one"):
            serving.free_port("127.0.0.1", port)


def test_a_server_takes_the_default_sizes_of_an_engine_in_this_process() -> None:
    """vLLM gives who asks its own: a served run would be another protocol."""

    class Arguments:
        @classmethod
        def sizes(cls, world: int) -> tuple[dict[str, int], dict[str, int]]:
            return {"offline": 16 * world, "server": 2 * world}, {"offline": 256, "server": 128, "other": 1}

    Arguments.sizes = classmethod(server_process.as_offline(Arguments.sizes.__func__, "offline"))  # type: ignore
    assert Arguments.sizes(2) == ({"offline": 32, "server": 32}, {"offline": 256, "server": 256, "other": 256})


def test_a_url_where_nothing_is_does_not_answer() -> None:
    assert not answers("http://127.0.0.1:9")


@pytest.fixture(scope="module")
def server(zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Any]]:
    """Address, what it printed, process; an engine in a process of its own starts beside it."""
    folder = tmp_path_factory.mktemp("served")
    command = [sys.executable, "-m", "speceval", "serve", "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1"]
    command += ["--batch", "1", "--port", "0", "--log", str(folder / "server.log")]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as own:
        try:
            printed = ""
            assert own.stdout is not None
            while not printed.endswith("--batch 1\n"):
                line = own.stdout.readline()
                assert line, printed + (folder / "server.log").read_text()[-4000:]
                printed += line
            yield re.findall(r"http://127.0.0.1:\d+", printed)[-1], printed, own
        finally:
            own.kill()


def measured(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([sys.executable, SCRIPT, *arguments], env=ENVIRONMENT, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def both(
    request: pytest.FixtureRequest, zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What an engine in a process says of the requests, and what the server says."""
    found = {}
    own, there = (tmp_path_factory.mktemp(name) for name in ("vllm", "server"))
    with measured(own, "vllm", str(own / "result.json")) as engine:
        url = request.getfixturevalue("server")[0]
        with measured(there, "server", str(there / "result.json"), url) as client:
            assert client.wait(300) == 0, (there / "log").read_text()[-4000:]
        assert engine.wait(300) == 0, (own / "log").read_text()[-4000:]
    for folder, name in ((own, "vllm"), (there, "server")):
        found[name] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("what", ["sampled", "streamed", "greedy", "replayed", "counters", "settings"])
def test_a_served_run_is_the_offline_run(both: dict[str, Any], what: str) -> None:
    """Tokens, steps, what the verifier saw, bit for bit, from streams too; the texts of a replay, totals, settings."""
    assert both["server"][what] == both["vllm"][what]
    if what == "sampled":
        steps = [step for one in both["server"][what].values() for step in one["steps"]]
        assert sum(drafted > 0 for drafted, *_ in steps) > 15 and any(accepted for _, accepted, _ in steps)
    if what in ("sampled", "replayed"):
        assert all(one["recorded"] for one in both["server"][what].values() if len(one["tokens"]) > 1)


@pytest.mark.engine
@pytest.mark.slow
def test_the_target_s_log_probabilities_come_over_http(both: dict[str, Any]) -> None:
    assert both["server"]["scores"][0] == pytest.approx(both["vllm"]["scores"][0], abs=1e-5)


@pytest.mark.engine
@pytest.mark.slow
def test_the_command_that_serve_prints_measures_it_and_ctrl_c_stops_it(
    both: dict[str, Any], server: tuple[str, str, Any], tmp_path: Path
) -> None:
    url, printed, own = server
    command = printed.splitlines()[-1].split()
    assert command[0] == "speceval"
    command = [sys.executable, "-m", *command, "--limit", "3", "--max-tokens", "16", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_run(tmp_path / "run").meta.problems == []
    own.send_signal(signal.SIGINT)
    assert own.wait(60) == 0
    time.sleep(0.5)
    assert not answers(url)
