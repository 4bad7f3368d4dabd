"""Only whole answers to what was sent are counted, and a server that changes in the middle of a run is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import contract
from support.other_servers import NEW, LlamaCpp, Other, SGLang
from support.standin import StandIn, order
from test_server import GENERATE, RUN, active, characters, run  # noqa: F401
from typer.testing import CliRunner

from speceval import cli, engines
from speceval.engines.base import Finished
from speceval.engines.server import metrics
from speceval.errors import UserError
from speceval.store import read_run

pytestmark = pytest.mark.slow
Change = Callable[[Any], Any]


def changed(server: StandIn, path: str, change: Change, after: int = 0) -> None:
    """From answer `after` of a path on, `change` of each is answered."""
    content, left = server._content, [after]

    def answered(asked: str, body: Any) -> Any:
        found = content(asked, body)
        if asked.partition("?")[0] == path:
            left[0] -= 1
            if left[0] < 0:
                return change(found)
        return found

    server._content = answered  # type: ignore[method-assign]


def choice(**other: Any) -> Change:
    return lambda answer: answer | {"choices": [answer["choices"][0] | other]}


def usage(**other: Any) -> Change:
    return lambda answer: answer | {"usage": answer["usage"] | other}


def longer(answer: Any) -> Any:
    """More tokens than the request allows, with the steps that they are made of."""
    steps = {"per_step_drafted": [4] * 99, "per_step_accepted": [0] * 99}
    return choice(token_ids=[97] * 100)(usage(completion_tokens=100)(answer)) | {
        "metrics": {"speculative_decoding": steps}
    }


def fourth(answer: Any) -> Any:
    """Cut at four tokens by the server's own limit."""
    steps = {"per_step_drafted": [4] * 3, "per_step_accepted": [0] * 3}
    cut = choice(token_ids=[97] * 4, finish_reason="length")(usage(completion_tokens=4)(answer))
    return cut | {"metrics": {"speculative_decoding": steps}}


ANSWERS: dict[str, tuple[Change, str]] = {
    "given up": (choice(finish_reason="abort"), r"gave an answer up \(abort\).*the same command resumes"),
    "an error": (choice(finish_reason="error"), r"gave an answer up \(error\).*the same command resumes"),
    "filtered": (choice(finish_reason="content_filter"), "neither stop nor length"),
    "another prompt": (lambda answer: answer | {"prompt_token_ids": [1, 2, 3]}, "another prompt"),
    "a longer prompt": (usage(prompt_tokens=4), "another prompt"),
    "tokens lost on the way": (usage(completion_tokens=1000), "and counts 1000"),
    "too long": (longer, "100 tokens, at most 20"),
    "cut short": (fourth, "at 4 tokens of the 20"),
    "nothing": (lambda answer: choice(token_ids=[])(usage(completion_tokens=0)(answer)), "answered nothing"),
    "no choice": (lambda answer: answer | {"choices": []}, "an answer that cannot be read"),
    "two choices": (lambda answer: answer | {"choices": answer["choices"] * 2}, "an answer that cannot be read"),
    "another server's": (lambda answer: answer | {"metrics": None}, "no verify steps|told steps, and now nothing"),
}


def ask(server: StandIn, timed: bool = False) -> dict[str, Finished]:
    """One request after the engine was opened; the next answers are `changed` then."""
    with closing(engines.open(replace(order(server), timed=timed))) as engine:
        return contract.finish(engine, {"r": ([97, 98, 99], replace(contract.sampling(), max_tokens=20))})


@pytest.mark.parametrize("workers", [True, False], ids=["workers", "plain"])
@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_that_is_not_a_whole_one_to_what_was_sent_is_not_counted(what: str, workers: bool) -> None:
    change, says = ANSWERS[what]
    with StandIn(active(), closed=() if workers else ("/collective_rpc",)) as server:
        changed(server, GENERATE, change, after=1)  # the trial's is right
        with pytest.raises(UserError, match=says) as caught:
            ask(server)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["sglang", "llamacpp"])
def test_other_servers_that_read_another_prompt_are_refused_too(kind: str) -> None:
    server: StandIn = SGLang(NEW) if kind == "sglang" else LlamaCpp()
    with server:
        pages = server.pages  # type: ignore[attr-defined]

        def longer_prompt(path: str, body: Any) -> Any:
            answer = pages(path, body)
            if path == "/generate":
                answer["meta_info"]["prompt_tokens"] += 1
            return answer.replace('"tokens_evaluated": 3', '"tokens_evaluated": 4') if path == "/completion" else answer

        server.pages = longer_prompt  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="another prompt"):
            ask(server)


@pytest.mark.parametrize(
    ("reason", "says"), [("content_filter", "neither stop nor"), ("abort", "gave"), ("eos_token", "")]
)
def test_a_text_must_have_come_to_its_end_too(reason: str, says: str) -> None:
    with Other() as server:
        changed(server, "/v1/completions", lambda _: {"choices": [{"text": "abc", "finish_reason": reason}]})
        if says:
            with pytest.raises(UserError, match=says):
                ask(server)
        else:
            assert ask(server)["r"].finish_reason == "stop"


def test_a_text_of_nothing_is_an_answer_of_one_token() -> None:
    """A server that tells texts alone leaves their end out."""
    with Other() as server:
        changed(server, "/v1/completions", lambda _: {"choices": [{"text": "", "finish_reason": "stop"}]})
        assert len(ask(server)["r"].token_ids) == 1


def test_a_request_for_which_nothing_was_drafted_has_no_steps_to_tell() -> None:
    """vLLM leaves its arrays out then: with an n-gram drafter, say."""
    told = {"speculative_decoding": {"acceptance_histogram": [0] * 5, "num_draft_tokens": 0}}
    for closed in ((), ("/collective_rpc",)):
        with StandIn(active(), closed=closed) as server:
            changed(server, GENERATE, lambda answer: answer | {"metrics": told}, after=1)
            found = ask(server)["r"]
            assert found.token_ids and not any(step.drafted for step in found.steps)


def test_a_stream_that_goes_on_for_ever_ends() -> None:
    event = b'data: {"choices": [{"token_ids": [], "finish_reason": null}]}\n\n'
    with StandIn(active()) as server, closing(engines.open(replace(order(server), timed=True))) as engine:
        server.faults[GENERATE] = [(200, {}, event * 1000)]
        with pytest.raises(UserError, match="a stream without an end"):
            contract.finish(engine, {"r": ([97, 98, 99], replace(contract.sampling(), max_tokens=20))})


@pytest.mark.parametrize("workers", [True, False], ids=["workers", "plain"])
def test_a_tokenizer_that_is_not_the_server_s_is_refused(workers: bool) -> None:
    """What it reads is compared but for blanks; a server that does not say is taken as it is."""
    with StandIn(active(), closed=() if workers else ("/collective_rpc",)) as server:
        for answer in ({"prompt": " The quick brown fox asks: is 12 + 7 = 19, or more?"}, {"other": 1}):
            server.faults["/detokenize"] = [(200, {}, json.dumps(answer).encode())]
            engines.open(order(server)).close()
        server.faults["/detokenize"] = [(200, {}, b'{"prompt": "\\u001b[2Jzzz"}')]
        with pytest.raises(UserError, match=r"--target zoo: its tokenizer is not the server's.*zzz") as caught:
            engines.open(order(server))
        assert "\x1b" not in str(caught.value)
        sent = next(body for path, _, body in server.calls if path == "/detokenize")
        assert sent["model"] == "served" and len(sent["tokens"]) == 50


@pytest.mark.parametrize("fault", ["abort", "429"])
def test_what_one_of_two_servers_gives_up_goes_to_the_other(fault: str, tmp_path: Path) -> None:
    with StandIn(active()) as one, StandIn(active()) as two:
        if fault == "abort":
            changed(two, GENERATE, choice(finish_reason="abort"), after=6)
        else:
            answer, left = two.answer, [6]

            def busy(path: str, headers: Any, body: Any) -> Any:
                left[0] -= path == GENERATE
                return (429, {}, b"slow down") if path == GENERATE and left[0] < 0 else answer(path, headers, body)

            two.answer = busy  # type: ignore[method-assign]
        words = [*RUN, "--url", f"{one.url},{two.url}", "--batch", "2", "--out", str(tmp_path / "run")]
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0, (done.output, done.exception)
    stored = read_run(tmp_path / "run")
    assert stored.conversations == 24 and stored.meta.problems == []
    assert not stored.turns.duplicated(["suite", "conversation", "seed", "turn"]).any()
    assert any("was lost" in note for note in stored.meta.notes)


def test_a_server_that_began_anew_in_mid_run_is_named_and_its_totals_left_aside(tmp_path: Path) -> None:
    """It was back before anything was asked of it: no request broke off."""
    with StandIn(active(), closed=("/collective_rpc",)) as server:
        server.foreign = 1000

        def anew(answer: Any) -> Any:
            if server.answered == 10:
                server.foreign, server.tokens, server.engine = 0, 0, type(server.engine)((0.8, 0.7, 0.6, 0.5), end=0.05)
            return answer

        changed(server, GENERATE, anew)
        done = run(server, tmp_path / "run")
        assert done.exit_code == 0, (done.output, done.exception)
    meta = read_run(tmp_path / "run").meta
    assert any("began anew meanwhile" in note for note in meta.notes) and meta.problems == []


def test_totals_that_llama_cpp_rounds_are_left_aside() -> None:
    page = "llamacpp:tokens_predicted_total {}\nllamacpp:spec_decode_num_drafts_total {}\n"
    assert metrics.rounding(page.format("999999", "5"), "llamacpp:") == 1
    assert metrics.rounding(page.format("1.23457e+06", "5"), "llamacpp:") == 10
    assert metrics.rounding(page.format("1.23457e+08", "5"), "llamacpp:", ("spec_decode_num_drafts",)) == 1
    assert metrics.rounding(page.format("1.23457e+08", "5").replace("llamacpp:", "vllm:"), "vllm:") == 1
    with LlamaCpp() as server:
        metrics_page = server._metrics
        server._metrics = lambda: metrics_page().replace(f" {server.tokens}.0", " 1.23457e+06")  # type: ignore[method-assign]
        with closing(engines.open(order(server))) as engine:
            engine.warm_up()
            assert contract.finish(engine, contract.some(engine))
            assert engine.counters() is None and engine.foreign() == ""
            assert any("rounded" in note for note in engine.notes())


def test_values_with_a_time_and_other_line_ends_are_read() -> None:
    page = (
        'vllm:spec_decode_num_drafts_total{model_name="a} 5"} 1.5e+03 1700000000000\r\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 7.0\r\n'
    )
    counted = metrics.counters(page)
    assert (counted.num_drafts, counted.num_accepted_tokens_per_pos) == (1500, [7])


@pytest.mark.parametrize("settings", [1.5, None, [], "none", {"k": "five"}])
def test_settings_that_are_none_are_one_line(settings: Any) -> None:
    with StandIn(active()) as server:
        server.settings = settings
        with pytest.raises(UserError) as caught:
            engines.open(order(server))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("histogram", [[10**12, 0, 0, 0, 0], [-1, 9, 0, 0, 0], [40, 0, 0, 0, 0], [2.0, 0, 0, 0, 0]])
def test_a_histogram_that_is_none_of_so_many_tokens_is_refused_and_fills_no_memory(histogram: list[Any]) -> None:
    told = {"speculative_decoding": {"acceptance_histogram": histogram, "num_draft_tokens": 40}}
    with StandIn([], "summary", closed=("/collective_rpc",)) as server:
        changed(server, GENERATE, lambda answer: answer | {"metrics": told}, after=1)
        with pytest.raises(UserError, match="cannot be read"):
            ask(server)


def test_so_many_steps_told_in_sums_are_refused_too() -> None:
    with SGLang({}) as server:
        pages, left = server.pages, [1]

        def many(path: str, body: Any) -> Any:
            answer = pages(path, body)
            left[0] -= path == "/generate"
            if left[0] < 0 and path == "/generate":
                answer["meta_info"]["spec_verify_ct"] = 10**12
            return answer

        server.pages = many  # type: ignore[method-assign]
        with pytest.raises(UserError, match="cannot be read: 1000000000000 verify steps"):
            ask(server)


@pytest.mark.parametrize("context", [1 << 80, float("nan"), -5, True, "4096", 0])
def test_a_context_or_k_that_is_no_number_of_tokens_is_stored_nowhere(context: Any, tmp_path: Path) -> None:
    """A run could be written with it and not be read again."""
    with StandIn(active(), closed=("/collective_rpc",)) as server:
        changed(server, "/v1/models", lambda _: {"data": [{"id": "served", "max_model_len": context}]})
        server.information = {"speculative_config": {"num_speculative_tokens": float("nan"), "method": [1]}}
        probed = CliRunner().invoke(cli.app, ["probe", server.url, "--json"])
        assert isinstance(probed.exception, UserError) or json.loads(probed.output)["told"] == {}
        done = run(server, tmp_path / "run", "--limit", "2")
    if done.exit_code == 0:
        assert read_run(tmp_path / "run").conversations == 2
    else:
        assert "no JSON" in str(done.exception) and not (tmp_path / "run" / "run.json").exists()


def test_a_server_that_takes_texts_alone_is_asked_in_texts(tmp_path: Path) -> None:
    with Other() as server:
        answer = server.answer

        def texts_alone(path: str, headers: Any, body: Any) -> Any:
            if path == "/v1/completions" and not isinstance(body["prompt"], str):
                return 400, {}, b'{"error": "prompt: a string is needed"}'
            return answer(path, headers, body)

        server.answer = texts_alone  # type: ignore[method-assign]
        done = run(server, tmp_path / "run", "--limit", "2")
        assert done.exit_code == 0, (done.output, done.exception)
        sent = [body["prompt"] for path, _, body in server.calls if path == "/v1/completions"]
    assert len(sent) == 3 and sent[1].startswith("user: ")  # the trial, then each conversation
    assert "prompts as texts alone" in "".join(done.output.split("\n"))
