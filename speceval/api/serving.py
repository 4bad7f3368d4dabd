"""`speceval.serve`: vLLM's own server, started to tell everything that a measurement can use."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speceval import engines
from speceval.api.words import errors_by_parameter
from speceval.engines.base import Served
from speceval.measure import launch
from speceval.measure.job import prepare
from speceval.measure.start import order
from speceval.protocol import RunSpec

HOST, PORT = "127.0.0.1", 8000
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Serving:
    """A server that answers."""

    url: str
    name: str
    """The model is served by."""
    log: Path
    spec: RunSpec
    """As what it was started."""
    server: Served

    def command(self) -> str:
        """The shell command that measures it."""
        spec = self.spec
        words = ["speceval", "run", "--url", self.url, "--target", spec.target, "--draft", spec.draft]
        words += ["--k", str(spec.k), "--temp", f"{spec.temperature:g}", "--batch", str(spec.batch)]
        if spec.temperature > 0 and spec.drafting == "greedy":
            words += ["--drafting", "greedy"]
        changed = (("--method", spec.method, None), ("--rejection", spec.rejection, "standard"))
        for flag, value, default in (*changed, ("--runner", spec.runner, None)):
            words += [] if value == default else [flag, str(value)]
        words += ["--trust-remote-code"] * spec.trust_remote_code
        return shlex.join(words)


@contextmanager
def start(
    asked: Mapping[str, Any],
    host: str = HOST,
    port: int = PORT,
    name: str | None = None,
    log: Path | None = None,
    starting: Callable[[Path], None] = lambda _: None,
) -> Iterator[Serving]:
    """`serve` of fields of `RunSpec`; `starting` is told the log."""
    # The suite plays no part, but a run has one.
    job = launch.fetch(prepare(suite_names=["demo"], **asked))
    path = log or Path("results") / "serve" / f"{job.spec.name}.log"
    server = engines.find(job.spec.engine).server(order(job), host, port, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            server.log_to(file)
            starting(path)
            server.wait()
            yield Serving(server.url, server.name, path, job.spec, server)
            server.stop()
    finally:
        server.stop()


@errors_by_parameter()
def serve(
    target: str,
    draft: str,
    *,
    temperature: float = 1.0,
    k: int | None = None,
    drafting: Literal["probabilistic", "greedy"] | None = None,
    draft_truncation: bool = True,
    rejection: Literal["standard", "block"] = "standard",
    batch: int = 32,
    runner: Literal["v1", "v2"] | None = None,
    method: str | None = None,
    draft_args: Mapping[str, Any] | None = None,
    engine_args: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    host: str = HOST,
    port: int = PORT,
    name: str | None = None,
    log: str | Path | None = None,
) -> Any:
    """Serve a target and its drafter with vLLM's own server while a `with` block lasts, as `speceval serve` does.

        with speceval.serve("zoo", "lk-eagle3", port=0) as server:
            print(server.url)

    Args:
        temperature: at which it will be measured: above 0 drafts are sampled.
        host: address to listen at; others than this machine's own can change what the server does.
        port: 0: any that is free.
        name: the model is served by; None: the target's.
        log: file for its output; None: in `results/serve/`.
        target, draft, k and the others: as for `run`.

    Returns:
        A context manager of the server: `url`, `name`, `log`, `command()` (the shell command that measures it).

    Raises:
        UserError: what was asked for is impossible, or the server ended before it answered.
    """
    asked = {
        "target": target,
        "draft": draft,
        "temperature": temperature,
        "k": k,
        "drafting": drafting,
        "draft_truncation": draft_truncation,
        "rejection": rejection,
        "batch": batch,
        "runner": runner,
        "method": method,
        "draft_args": dict(draft_args or {}),
        "engine_args": dict(engine_args or {}),
        "trust_remote_code": trust_remote_code,
    }
    return start(asked, host, port, name, None if log is None else Path(log))


def reachable_by_others(host: str) -> bool:
    """Whether other machines reach a server at this address."""
    return host not in LOCAL
