"""Servers that tell less than vLLM with our extension are measured by what they tell, and it is said what that is."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import contract
from support.other_servers import NEW, OLD, LlamaCpp, Other, SGLang
from support.standin import StandIn, order
from test_server import active, characters  # noqa: F401
from typer.testing import CliRunner

import speceval
from speceval import cli, engines
from speceval.engines.base import Step
from speceval.engines.server import answers
from speceval.errors import UserError
from speceval.store import StoredRun, read_run

RUN = ["run", "--target", "zoo", "--draft", "lk-eagle3", "--k", "4", "--temp", "1", "--max-tokens", "20"]
WORKERLESS = ("/collective_rpc",)


def command(*words: str) -> Any:
    return CliRunner().invoke(cli.app, list(words))


def measured(server: StandIn, out: Path, *more: str) -> StoredRun:
    done = command(*RUN, "--url", server.url, "--out", str(out), *more)
    assert done.exit_code == 0, (done.output, done.exception)
    return read_run(out)


def true_tau(server: StandIn) -> float:
    counted = server.engine.counters()
    return 1 + counted.num_accepted_tokens / counted.num_drafts


SERVERS: dict[str, tuple[Any, str]] = {
    "vllm without our extension": (lambda: StandIn(active(), closed=WORKERLESS), "steps"),
    "vllm without token endpoints": (lambda: StandIn(active(), closed=("/inference/v1/generate",)), "steps"),
    "vllm with a summary": (lambda: StandIn(active(), detailed="summary", closed=WORKERLESS), "histogram"),
    "vllm as it is": (lambda: StandIn(active(), detailed=False, closed=WORKERLESS), "totals"),
    "sglang": (lambda: SGLang(NEW), "histogram"),
    "an older sglang": (lambda: SGLang(OLD), "histogram"),
    "sglang without histograms": (lambda: SGLang({"accepted": OLD["accepted"]}), "requests"),
    "llama.cpp": (LlamaCpp, "steps"),
    "another": (Other, "nothing"),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_is_recognised_measured_by_what_it_tells_and_named_so(kind: str, tmp_path: Path) -> None:
    make, evidence = SERVERS[kind]
    with make() as server:
        assert speceval.probe(server.url).evidence == evidence
        before = server.engine.counters()
        run = measured(server, tmp_path / "run")
        now = server.engine.counters().minus(before)
        told = json.loads(command("show", str(tmp_path / "run"), "--json").output)
    assert run.meta.evidence == told["evidence"] == evidence and run.meta.problems == []
    assert any(note.startswith(f"evidence: {evidence} (") for note in run.meta.notes)
    suite = told["suites"]["demo"]
    if evidence in ("steps", "histogram", "requests"):
        drafted = run.steps[run.steps["drafted"] > 0]
        # The trial of the run is the simulated engine's too, and in no table.
        assert 0 <= now.num_drafts - len(drafted) <= 24 and len(drafted) > 40
        assert suite["tau"]["low"] < suite["tau"]["value"] < suite["tau"]["high"]
    else:
        assert suite["tau"]["value"] is None
    if evidence == "totals":
        assert (
            told["totals"]["tau"] == pytest.approx(true_tau(server), rel=0.1) and len(told["totals"]["positions"]) == 4
        )
    if evidence == "nothing":
        assert "not reported by this server" in command("show", str(tmp_path / "run")).output


@pytest.mark.parametrize("kind", ["sglang", "sglang without histograms"])
def test_what_is_told_in_sums_is_kept_in_sums(kind: str, tmp_path: Path) -> None:
    """tau of a histogram, and of sums, is the one of the steps that they came from."""
    with SERVERS[kind][0]() as server, closing(engines.open(order(server))) as engine:
        before = server.engine.counters()
        found = contract.finish(engine, contract.some(engine))
        now = server.engine.counters().minus(before)
    steps = [step for one in found.values() for step in one.steps if step.drafted]
    assert (len(steps), sum(step.accepted for step in steps)) == (now.num_drafts, now.num_accepted_tokens)
    if kind == "sglang":
        positions = [sum(step.accepted >= j for step in steps) for j in range(1, 5)]
        assert positions == now.num_accepted_tokens_per_pos


def test_coarse_evidence_is_compared_only_where_it_can_be(tmp_path: Path) -> None:
    with StandIn(active(), detailed="summary", closed=WORKERLESS) as server:
        measured(server, tmp_path / "histogram")
    with StandIn(active(), detailed=False, closed=WORKERLESS) as server:
        measured(server, tmp_path / "totals")
    histogram, totals = (str(tmp_path / name) for name in ("histogram", "totals"))
    assert command("compare", histogram, histogram).exit_code == 0
    assert command("baseline", histogram, "-o", str(tmp_path / "b.json")).exit_code == 0
    for words, says in (
        (("explain", histogram), "explain needs each step in its place"),
        (("table", histogram, "--layout", "lengths"), "--layout lengths needs each step"),
        (("plot", histogram, "--kind", "along", "-o", str(tmp_path / "f.png")), "--kind along needs each step"),
        (("compare", histogram, totals), "its evidence is totals"),
        (("baseline", totals, "-o", str(tmp_path / "c.json")), "its evidence is totals"),
        (("report", totals, "-o", str(tmp_path / "r.html")), "its evidence is totals"),
    ):
        done = command(*words)
        assert isinstance(done.exception, UserError) and says in str(done.exception), (words, done.output)


def test_others_traffic_spoils_totals_alone(tmp_path: Path) -> None:
    with StandIn(active(), detailed=False, closed=WORKERLESS) as server:
        server.shared = 1
        done = command(*RUN, "--url", server.url, "--out", str(tmp_path / "run"))
    assert done.exit_code == 1 and "others used the server meanwhile" in read_run(tmp_path / "run").meta.problems[0]


def test_what_a_server_cannot_be_asked_is_one_line() -> None:
    for server, says in (
        (SGLang(NEW, device="cpu"), "--temp 1: SGLang on a cpu verifies greedily at every temperature"),
        (SGLang(NEW, speculative_num_draft_tokens=3), "--k 4: the server drafts 2 tokens a step: ask for that"),
    ):
        with server, pytest.raises(UserError, match=says):
            engines.open(order(server))
    with Other() as server, pytest.raises(UserError, match="--runner v2: this server does not tell which model runner"):
        engines.open(replace(order(server), runner="v2"))
    with Other() as server, pytest.raises(UserError, match="404"):
        speceval.probe(server.url, dialect="sglang")


@pytest.mark.parametrize("name", ["probe", "watch"])
def test_a_command_that_stores_nothing_promises_no_resuming(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speceval.engines.server.client.TRIES", 1)
    told = str(command(name, "http://127.0.0.1:9").exception)
    assert told.endswith("cannot be reached (All connection attempts failed): is the server up, and its address right?")


def test_probe_names_the_flag_that_is_missing() -> None:
    with StandIn(active(), detailed=False, closed=WORKERLESS) as server:
        done = command("probe", server.url)
    assert done.exit_code == 0 and "--per-request-spec-decode-metrics detailed" in done.output
    with StandIn(active()) as server:
        done = command("probe", server.url, "--json")
    told = json.loads(done.output)
    assert next(iter(told)) == "schema" and told["schema"] == 1
    assert (told["server"], told["version"], told["workers"], told["missing"]) == ("vllm", "0.32.0", True, [])


@pytest.mark.parametrize(
    ("settings", "says"), [({"runner": "V2"}, "V2"), ({"runner": "V1"}, "V1"), ({"runner": 7}, None)]
)
def test_probe_tells_the_runner_that_the_workers_have(settings: dict[str, Any], says: str | None) -> None:
    with StandIn(active(), **settings) as server:
        shown, told = command("probe", server.url).output, speceval.probe(server.url)
    assert told.runner == told.as_json()["runner"] == says
    assert ("runner" in shown) == (says is not None) and (says or "") in shown
    with StandIn(active(), closed=WORKERLESS, **settings) as server:
        assert speceval.probe(server.url).runner is None


@pytest.mark.parametrize(
    "information", ["VllmConfig(…)", {"speculative_config": "…"}, {"speculative_config": None}, None]
)
def test_whatever_a_server_says_of_itself_it_can_be_probed(information: Any) -> None:
    with StandIn(active()) as server:
        server.information = information
        assert speceval.probe(server.url).evidence == "steps"


def test_what_vllm_s_developer_mode_says_is_read() -> None:
    with StandIn(active(), closed=WORKERLESS) as server:
        server.information = {"speculative_config": {"method": "eagle3", "num_speculative_tokens": 2}}
        with pytest.raises(UserError, match="--k 4: the server drafts 2 tokens a step"):
            engines.open(order(server))


def test_sglang_s_own_rule_of_acceptance_is_named() -> None:
    with SGLang(NEW) as server:
        assert any("another quantity" in note for note in speceval.probe(server.url).notes)
    with SGLang(NEW, speculative_use_rejection_sampling=True) as server:
        assert not any("another quantity" in note for note in speceval.probe(server.url).notes)


@pytest.mark.parametrize(
    ("tokens", "histogram", "drafted", "committed"),
    [
        (7, [1, 0, 1, 0, 1], 12, [1, 3, 2]),  # 9 verified and kept, the last step is cut to what is left
        (9, [1, 0, 1, 0, 1], 10, [1, 3, 4]),
        (1, [0, 0, 0, 0, 0], 0, []),
    ],
)
def test_steps_of_a_histogram_have_its_sums(
    tokens: int, histogram: list[int], drafted: int, committed: list[int]
) -> None:
    steps = answers.of_histogram(tokens, histogram, drafted)
    assert [step.committed for step in steps] == committed
    assert np.bincount([step.accepted for step in steps], minlength=5).tolist() == histogram
    assert sum(step.drafted for step in steps) == drafted and all(step.accepted <= step.drafted for step in steps)


def test_llama_cpp_s_running_sums_are_taken_apart() -> None:
    """The first token is the prefill's; two steps drafted; the last token came without drafts."""
    running = [(0, 0), (4, 2), (4, 2), (4, 2), (8, 2), (8, 2)]
    events = [
        {"tokens": [number], "timings": {"draft_n": d, "draft_n_accepted": a}} for number, (d, a) in enumerate(running)
    ]
    answer = answers.llamacpp([*events, {"tokens": [], "stop_type": "eos"}], 4)
    assert answer.steps == [Step(4, 2, 3), Step(4, 0, 1), Step(0, 0, 1)] and answer.finish_reason == "stop"


@pytest.fixture(scope="module")
def grades(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run whose server told steps, and one whose server told histograms, of one setting."""
    from speceval.engines.server import engine, plain
    from speceval.engines.simulated import Characters

    folder = tmp_path_factory.mktemp("grades")
    with pytest.MonkeyPatch.context() as patched:
        for module in (engine, plain):
            patched.setattr(module, "tokenizer_of", lambda order: Characters())
        for name, detailed in (("steps", True), ("histogram", "summary")):
            with StandIn(active(), detailed=detailed, closed=WORKERLESS) as server:
                measured(server, folder / name)
    return {name: folder / name for name in ("steps", "histogram")}


def test_two_grades_are_compared_in_what_both_give_and_marked(grades: dict[str, Path], tmp_path: Path) -> None:
    """The counts are the same here, and so is every number; views say which run's steps have no order."""
    steps, histogram = (str(grades[name]) for name in ("steps", "histogram"))
    baseline = str(tmp_path / "b.json")
    assert command("baseline", steps, "-o", baseline).exit_code == 0
    marked = "evidence: steps -> histogram"
    compared = command("compare", steps, histogram)
    assert compared.exit_code == 0 and marked in compared.output
    checked = command("check", histogram, "--baseline", baseline)
    assert marked in checked.output, checked.output
    assert "told a histogram of each request" in command("table", steps, histogram, "--format", "md").output
    page = tmp_path / "r.html"
    assert command("report", steps, histogram, "-o", str(page)).exit_code == 0
    assert "told a histogram of each request" in page.read_text()
    told = json.loads(command("compare", steps, histogram, "--json").output)["comparisons"][0]
    assert told["tau_a"]["value"] == pytest.approx(told["tau_b"]["value"], rel=0.2) and len(told["positions"]) == 4


def test_positions_of_a_histogram_are_known_only_where_all_steps_drafted_alike(
    grades: dict[str, Path], tmp_path: Path
) -> None:
    """Of steps with fewer drafts a histogram does not tell which they were: no view makes a rate of them."""
    import shutil

    import pandas as pd

    uneven = tmp_path / "uneven"
    shutil.copytree(grades["histogram"], uneven)
    steps, turns = (pd.read_parquet(uneven / f"{name}.parquet") for name in ("steps", "turns"))
    short = (steps["drafted"] == 4) & (steps["accepted"] == 0) & (steps.index % 3 == 0)
    steps.loc[short, "drafted"] = 2
    request = ["suite", "conversation", "seed", "turn"]
    turns["drafted"] = turns[request].merge(steps.groupby(request, as_index=False)["drafted"].sum(), "left")["drafted"]
    turns["drafted"] = turns["drafted"].fillna(0).astype("int64")
    steps.to_parquet(uneven / "steps.parquet", index=False)
    turns.to_parquet(uneven / "turns.parquet", index=False)
    meta = json.loads((uneven / "run.json").read_text())
    for segment in meta["segments"]:
        segment["counters"] = None
    (uneven / "run.json").write_text(json.dumps(meta))
    shown = command("show", str(uneven))
    assert shown.exit_code == 0 and "which positions they drafted is not told" in " ".join(shown.output.split())
    assert json.loads(command("show", str(uneven), "--json").output)["suites"]["demo"]["positions"] == []
    compared = command("compare", str(grades["steps"]), str(uneven), "--json")
    assert json.loads(compared.output)["comparisons"][0]["positions"] == []
    assert command("compare", str(grades["steps"]), str(uneven)).exit_code == 0
    for words in (
        ("baseline", str(uneven), "-o", str(tmp_path / "b.json")),
        ("check", str(uneven), "--baseline", str(grades["steps"])),
        ("table", str(uneven), "--layout", "positions"),
        ("export", str(uneven), "--as", "speculation-profile"),
        ("plot", str(uneven), "--kind", "positions", "-o", str(tmp_path / "f.png")),
    ):
        done = command(*words)
        assert isinstance(done.exception, UserError) and "needs acceptance by position" in str(done.exception), words


def test_a_run_does_not_go_on_under_another_grade(tmp_path: Path) -> None:
    """Its server was restarted without the flag: half of the run would have no order."""
    out = tmp_path / "run"
    with StandIn(active(), closed=WORKERLESS) as server:
        server.left = 9
        assert command(*RUN, "--url", server.url, "--out", str(out)).exit_code
        port = server.port
    with StandIn(active(), detailed="summary", closed=WORKERLESS, port=port) as server:
        done = command(*RUN, "--url", server.url, "--out", str(out))
    assert "evidence: absent -> histogram" in str(done.exception)
