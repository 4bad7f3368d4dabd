"""A server under load: arrivals at a rate, times of each request, and the evidence that a stream still holds."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import contract
from support.other_servers import NEW, LlamaCpp, Other, SGLang
from support.standin import StandIn, order
from test_server import GENERATE, active, characters, run, server  # noqa: F401

from speceval import engines
from speceval.errors import UserError
from speceval.show import notes
from speceval.store import TIME_COLUMNS, read_run

pytestmark = pytest.mark.slow


PROMPT = [97, 98, 99]


def answer(served: StandIn, timed: bool, **arguments: Any) -> Any:
    """One request's answer, by a stream or without."""
    with closing(engines.open(replace(order(served, **arguments), timed=timed, record=False))) as measured:
        assert measured.evidence
        return contract.finish(measured, {"r": (PROMPT, contract.sampling())})["r"]


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (lambda: StandIn(active()), {}),
        (lambda: StandIn([], closed=("/collective_rpc", "/inference/v1/generate")), {}),
        (lambda: StandIn([], closed=("/collective_rpc",), detailed="summary"), {}),
        (lambda: SGLang(NEW), {}),
        (lambda: LlamaCpp(), {}),
        (lambda: Other(), {}),
    ],
    ids=["vllm", "vllm completions", "vllm summary", "sglang", "llamacpp", "openai"],
)
def test_a_stream_holds_the_evidence_that_the_whole_answer_holds(make: Any, arguments: Any) -> None:
    with make() as first, make() as second:
        whole, streamed = answer(first, False, **arguments), answer(second, True, **arguments)
    assert replace(streamed, times=None) == whole
    assert whole.times is None and streamed.times is not None
    assert 0 < streamed.times.first <= streamed.times.last < 60 and streamed.times.chunks > 1
    assert abs(streamed.times.sent - time.time()) < 60


def test_incremental_output_of_sglang_is_put_together() -> None:
    with SGLang(NEW) as first, SGLang(NEW) as second:
        second.incremental = True
        assert answer(second, True).token_ids == answer(first, True).token_ids


def test_times_are_those_at_which_the_tokens_came(server: StandIn) -> None:  # noqa: F811
    server.pauses = 0.2, 0.05
    times = answer(server, True).times
    assert times.chunks > 2
    assert 0.2 <= times.first < times.last - 0.05
    assert times.last >= 0.2 + 0.05 * (times.chunks - 1)


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (b'data: {"choices": [{"token_ids": [1], "finish_reason": null}]}\n\n', "is it vLLM's"),
        (b'data: {"error": {"message": "engine died"}}\n\ndata: [DONE]\n\n', "engine died"),
        (b'data: {"choices": [{"tok', "no JSON.*the same command resumes"),
        (b"data: [1]\n\n", "no JSON object"),
        (b"data: [DONE]\n\n", "nothing that is a stream"),
        (b'{"choices": []}', "nothing that is a stream"),
    ],
)
def test_a_stream_that_does_not_end_in_order_is_one_line(server: StandIn, stream: bytes, says: str) -> None:  # noqa: F811
    with closing(engines.open(replace(order(server), timed=True))) as measured:
        server.faults[GENERATE] = [(200, {}, stream)]
        with pytest.raises(UserError, match=says) as caught:
            contract.finish(measured, {"r": (PROMPT, contract.sampling())})
    assert "\n" not in str(caught.value)


def test_a_run_at_a_rate_has_the_times_of_every_request_and_its_totals_agree(
    server: StandIn,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The arrivals of a run are the same at every time: what is due is sent, and no more at once than there may be."""
    server.pauses = 0.004, 0.001
    done = run(server, tmp_path / "run", "--batch", "3", "--rate", "60")
    assert done.exit_code == 0, (done.output, done.exception)
    for label in ("TTFT mean (ms)", "TPOT P99 (ms)", "ITL mean (ms)", "E2EL median (ms)", "output tokens", "in flight"):
        assert label in done.output, label
    stored = read_run(tmp_path / "run")
    assert stored.meta.problems == [] and stored.meta.segments[0].counters is not None
    assert stored.meta.fingerprint.rate == 60
    turns = stored.turns
    assert turns[list(TIME_COLUMNS)].notna().all().all()
    assert (turns["ttft"] <= turns["latency"]).all() and (turns["chunks"] <= turns["output_tokens"]).all()
    begun = turns[turns["turn"] == 1]
    due = (begun["sent"] - begun["waited"]).sort_values().to_numpy()
    assert 0.15 < due[-1] - due[0] < 1.5  # 24 of them, 60 a second
    for sent, latency in zip(turns["sent"], turns["latency"], strict=True):
        inside = (turns["sent"] < sent + latency) & (turns["sent"] + turns["latency"] > sent + latency)
        assert inside.sum() <= 3


def test_as_fast_as_can_be_is_also_timed_and_is_the_same_protocol(server: StandIn, tmp_path: Path) -> None:  # noqa: F811
    for name, more in (("timed", ("--rate", "inf")), ("plain", ())):
        done = run(server, tmp_path / name, "--batch", "2", "--json", *more)
        assert done.exit_code == 0, (done.output, done.exception)
        assert (json.loads(done.stdout)["load"] is not None) == bool(more)
    timed, plain = read_run(tmp_path / "timed"), read_run(tmp_path / "plain")
    assert timed.meta.fingerprint_hash == plain.meta.fingerprint_hash
    assert "ttft" in timed.turns and "ttft" not in plain.turns
    assert json.loads((tmp_path / "timed" / "run.json").read_text())["spec"]["rate"] == "inf"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--rate", "fast"), "--rate fast: not a number"),
        (("--rate", "0"), "--rate: .*greater than 0"),
        (("--rate", "nan"), "--rate"),
        (("--rate", "2", "--shard", "1/2"), "leave --shard out"),
    ],
)
def test_a_rate_that_is_none_is_refused(server: StandIn, tmp_path: Path, more: Any, says: str) -> None:  # noqa: F811
    import re

    done = run(server, tmp_path / "run", *more)
    assert isinstance(done.exception, UserError) and re.search(says, str(done.exception)), done.exception
    assert "\n" not in str(done.exception) and not (tmp_path / "run").exists()


def test_an_engine_that_tells_no_times_refuses_a_rate(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from speceval import cli

    words = ["run", "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1", "--engine", "simulated", "--rate", "2"]
    done = CliRunner().invoke(cli.app, [*words, "--out", str(tmp_path / "run")])
    assert "simulated does not tell times" in str(done.exception)


def test_load_is_read_beside_tau_in_tables_and_comparisons(server: StandIn, tmp_path: Path) -> None:  # noqa: F811
    from typer.testing import CliRunner

    from speceval import cli

    for rate in ("inf", "80"):
        assert run(server, tmp_path / rate, "--batch", "2", "--rate", rate).exit_code == 0
    names = [str(tmp_path / rate) for rate in ("80", "inf")]
    table = CliRunner().invoke(cli.app, ["table", *names, "--layout", "load", "--format", "csv"])
    assert table.exit_code == 0 and "mean_ttft_ms" in table.stdout and "output_throughput" in table.stdout
    compared = CliRunner().invoke(cli.app, ["compare", *names])
    assert "--allow rate" in str(compared.exception)
    compared = CliRunner().invoke(cli.app, ["compare", *names, "--allow", "rate"])
    assert compared.exit_code == 0 and "TTFT mean" in compared.stdout and "ALLOWED TO DIFFER: rate" in compared.stdout


@pytest.mark.parametrize(("concurrency", "says"), [(7.9, True), (1.0, False)])
def test_it_is_said_that_requests_which_run_together_delay_each_other(concurrency: float, says: bool) -> None:
    rates = dict.fromkeys(("request_throughput", "output_throughput", "total_token_throughput"), INTERVAL)
    whole = {**rates, "concurrency": concurrency, "held": 0, "begun": 24, "waited_ms": 0.0}
    lines = notes.of_load({"rate": "inf", "max_concurrency": 8, "throughput": whole, "interpreted": False})
    assert any("delay each other" in line for line in lines) == says


INTERVAL = {"value": 1.0, "low": 0.9, "high": 1.1}
