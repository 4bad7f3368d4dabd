"""What vLLM's server is started with is what an engine in this process gets, as flags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_offline import ORDER
from typer.testing import CliRunner

from speceval import cli
from speceval.api.serving import Serving
from speceval.engines.vllm import serving, start
from speceval.errors import UserError
from speceval.protocol import RunSpec
from vllm_patches.worker import EXTENSION

RUN = ("run", "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1")


def test_every_argument_of_an_engine_becomes_a_flag() -> None:
    order = replace(ORDER, batch=7, engine_args={"dtype": "float32", "enforce_eager": True, "hf_overrides": {"a": 1}})
    words = serving.flags(order, "0.32.0")
    given = dict(zip(words, [*words[1:], ""], strict=True))
    assert given["--model"] == "m" and given["--max-num-seqs"] == "7" and given["--dtype"] == "float32"
    assert {"--enforce-eager", "--no-enable-prefix-caching", "--no-trust-remote-code", *serving.ALWAYS} <= set(words)
    assert json.loads(given["--hf-overrides"]) == {"a": 1}
    assert given["--worker-extension-cls"] == EXTENSION and given["--per-request-spec-decode-metrics"] == "detailed"
    arguments = start.llm_arguments(order, "0.32.0")
    for name in ("speculative_config", "additional_config"):
        assert json.loads(given[f"--{name.replace('_', '-')}"]) == arguments[name]
    named = {word.removeprefix("--").removeprefix("no-").replace("-", "_") for word in words if word.startswith("--")}
    told = {name for name, value in arguments.items() if value is not None}
    assert told - named == {"disable_log_stats"}  # a server tells its totals unless it is told not to


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--through-server", "--url", "http://127.0.0.1:9"), "--through-server: starts a server of its own"),
        (("--through-server", "--engine", "simulated"), "--engine simulated: --through-server measures vLLM"),
        (("--through-server", "--speedup"), "--speedup: is timed without a server"),
        (("--dialect", "vllm"), "--dialect: has no meaning without --url"),
        (("--api-key-env", "NAME"), "--api-key-env: has no meaning without --url"),
        (("--url", "http://127.0.0.1:9", "--speedup"), "--speedup: a running server cannot be timed"),
    ],
)
def test_flags_that_exclude_each_other_are_one_line(words: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(cli.app, [*RUN, *words])
    assert isinstance(done.exception, UserError) and str(done.exception).startswith(says), done.output


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, ()),
        ({"runner": "v2"}, ("--runner", "v2")),
        ({"trust_remote_code": True}, ("--trust-remote-code",)),
        ({"method": "eagle3", "drafting": "greedy"}, ("--drafting", "greedy", "--method", "eagle3")),
    ],
)
def test_the_command_that_measures_a_server_asks_for_what_was_started(
    asked: dict[str, Any], words: tuple[str, ...]
) -> None:
    spec = RunSpec(
        **{"target": "t", "draft": "d", "k": 3, "temperature": 1, "drafting": "probabilistic", "suites": ("demo",)}
        | asked
    )
    command = Serving("http://127.0.0.1:1", "t", Path("log"), spec, SimpleNamespace()).command()  # type: ignore[arg-type]
    usual = "speceval run --url http://127.0.0.1:1 --target t --draft d --k 3 --temp 1 --batch 32"
    assert command == " ".join((usual, *words))
