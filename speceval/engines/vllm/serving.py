"""vLLM's own server as a process beside this one, started to tell everything that a measurement can use."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from contextlib import suppress
from typing import IO

from speceval.engines.base import Order
from speceval.engines.vllm import model_runner, start
from speceval.engines.vllm.server_process import PARENT
from speceval.errors import UserError
from vllm_patches.refuse import MEASURED_SWITCH

HOST = "127.0.0.1"
SECONDS_TO_START = 1800.0
"""Large models are loaded and compiled for minutes."""
SECONDS_TO_STOP = 30.0
"""After SIGTERM; then it is killed."""
LINES = 400
"""Of its output that are kept to find out why it ended."""
ALWAYS = ("--enable-scale-out", "--enable-prompt-tokens-details")
"""Token ids in and out; tokens that came from a cache."""
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    MEASURED_SWITCH: "1",
}
_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The server is on this machine, to which no proxy leads."""
_TELLING = re.compile(r"\b(?:\w+Error|\w+Exception): .+|^\S*(?:api_server|entry)\S*: error: .+")
_REMARK = re.compile(r"(?:^|\) )(?:DEBUG|INFO|WARNING) \d\d-\d\d ")
"""Of vLLM's log, what is no error: it warns of a low `ulimit -n` with the OSError that could come of it."""
_WRAPPERS = re.compile(r"Engine core initialization failed|WorkerProc initialization failed|See root cause")


def flags(order: Order, version: str) -> list[str]:
    """Flags of vLLM's server for an order: the arguments of `vllm.LLM` that an engine in this process gets."""
    arguments = start.llm_arguments(order, version)
    del arguments["disable_log_stats"]  # a server tells its totals unless it is told otherwise
    words = list(ALWAYS)
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True or value is False:
            words.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None:
            words += [flag, json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return words


class Server:
    """A server of ours: `url` once it answers. Whoever starts it stops it; it ends with this process in any case."""

    def __init__(self, order: Order, host: str = HOST, port: int = 0, name: str | None = None) -> None:
        """Start the process. `port` 0: any that is free; `name`: the model is served by. Raises `UserError`."""
        version = start.require_vllm()
        port = free_port(host, port)
        self.name = name or order.target.name
        reached = HOST if host in ("0.0.0.0", "::") else host
        self.url = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"
        words = [*flags(order, version), "--host", host, "--port", str(port), "--served-model-name", self.name]
        environment = {
            **os.environ,
            **start.environment(order.target, order.engine_args),
            **model_runner.environment(order.runner, version),
            **ENVIRONMENT,
            PARENT: str(os.getpid()),
        }
        self._last: deque[str] = deque(maxlen=LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "speceval.engines.vllm.server_process", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours: a server that gets it too would end within a measurement
        )
        self._copying: threading.Thread | None = None

    def log_to(self, file: IO[bytes]) -> None:
        """Copy what it writes to a file from now on."""
        self._copying = threading.Thread(target=self._copy, args=(file,), name="server log", daemon=True)
        self._copying.start()

    def _copy(self, file: IO[bytes]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last.append(line.decode(errors="replace").rstrip())
            file.write(line)
            file.flush()

    def wait(self, seconds: float = SECONDS_TO_START) -> None:
        """Until it answers. Raises `UserError` where the process ends, or time is up."""
        deadline = time.monotonic() + seconds
        while not answers(self.url):
            if (code := self._process.poll()) is not None:
                raise UserError(f"vLLM's server could not start: {self.reason(code)}")
            if time.monotonic() > deadline:
                raise UserError(f"vLLM's server did not answer within {seconds:.0f} s: its log says what it does")
            time.sleep(0.2)

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process.poll() is None

    def reason(self, code: int) -> str:
        """The most telling line of what it wrote before it ended."""
        if self._copying is not None:
            self._copying.join(5)
        return reason(list(self._last), code)

    def stop(self) -> None:
        """End it and its own processes in order; again: nothing."""
        if self.running:
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_STOP)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its workers, if they are still there
        self._process.wait()
        if self._copying is not None:
            self._copying.join(5)


def answers(url: str) -> bool:
    """Whether a server answers that it is well."""
    try:
        with _WITHOUT_PROXY.open(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def reason(lines: list[str], code: int) -> str:
    """Why a server ended, from its last lines: the first error that is not about another one."""
    heard = [line for line in lines if not _REMARK.search(line) and not _WRAPPERS.search(line)]
    told = [match[0] for line in heard if (match := _TELLING.search(line))]
    return " ".join(told[0].split())[:300] if told else f"it ended with exit code {code}, and its log says why"


def free_port(host: str, port: int) -> int:
    """The port, or one that is free for 0. Raises `UserError` where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: {error.strerror}: name another one") from error
        return int(probe.getsockname()[1])
