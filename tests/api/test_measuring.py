"""`speceval.run` and `speceval.verify`, on a simulated engine."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.simulated_run import started

import speceval
from speceval.api.words import errors_by_parameter
from speceval.engines.simulated import SimulatedEngine
from speceval.measure import launch
from speceval.measure.job import Job

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Job]:
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("a b", "c", "d e f")))
    return started(monkeypatch)


SIMULATED: dict[str, Any] = {"temperature": 1, "suites": ["own.jsonl"], "engine": "simulated"}


def measured(**asked: Any) -> speceval.Run:
    return speceval.run(
        "zoo", "lk-eagle3", **{"temperature": 1, "suites": ["own.jsonl"], "engine": "simulated", **asked}
    )


def test_the_same_call_reads_a_finished_run_back_without_an_engine(jobs: list[Job]) -> None:
    first, again = measured(), measured()
    assert len(jobs) == 1
    assert first.directory == again.directory == Path("results") / jobs[0].spec.name
    assert first.tau() == again.tau() and first.complete
    assert speceval.validate(first) == []


def test_the_arguments_are_the_request(jobs: list[Job]) -> None:
    asked = {"k": 3, "seeds": (0, 1), "top_p": 0.9, "limit": 2, "max_tokens": 9, "record": False}
    spec = measured(**asked, out="here").meta.spec
    assert {name: getattr(spec, name) for name in asked} == asked
    assert Path("here/run.json").exists()


def test_run_json_says_how_a_shell_would_ask_again(jobs: list[Job]) -> None:
    run = measured(seeds=(0, 1), out=Path("here"), progress=True)
    shown = shlex.join(run.meta.command)
    assert run.meta.command[:2] == ["python", "-c"]
    assert shown == shlex.join(
        [
            *("python", "-c"),
            "import speceval; speceval.run('zoo', 'lk-eagle3', temperature=1, suites=['own.jsonl'], seeds=[0, 1], "
            "engine='simulated', out='here')",
        ]
    )


def test_an_interrupted_call_is_taken_up_by_the_same_call(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = SimulatedEngine.step, [0]

    def step(engine: SimulatedEngine) -> Any:
        steps[0] += 1
        if steps[0] == 40:
            raise KeyboardInterrupt
        return real(engine)

    monkeypatch.setattr(SimulatedEngine, "step", step)
    with pytest.raises(KeyboardInterrupt):
        measured(batch=1)
    run = measured(batch=1)
    assert len(jobs) == 2 and len(run.meta.segments) == 2
    assert run.complete and run.conversations == 3


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"temperature": -1}, "^temperature: .*got -1"),
        ({"k": 0}, "^K must be at least 1|^k"),
        ({"suites": "own.jsonl"}, r"^suites 'own.jsonl': one alone: write \['own.jsonl'\]"),
        ({"suites": ["gsm9k"]}, "unknown suite 'gsm9k'; did you mean gsm8k"),
        ({"rejection": "fly"}, "^rejection fly: "),
        ({"engine_args": {"hf_token": "abc"}}, "^engine_args hf_token is a secret and would be stored"),
        ({"speedup": [0]}, "^speedup: batch sizes are whole numbers"),
        ({"until": 2.0}, "^until: "),
        ({"against": "results/nothing"}, "^against|^results/nothing"),
        ({"replay": "results/nothing"}, "^results/nothing: no run here"),
        ({"replay": "results/nothing", "speedup": [1]}, "^speedup: has no meaning with replay"),
    ],
)
def test_bad_input_is_one_line_that_names_the_parameter(jobs: list[Job], asked: dict[str, Any], says: str) -> None:
    with pytest.raises(speceval.UserError, match=says) as error:
        measured(**asked)
    assert "\n" not in str(error.value) and "--" not in str(error.value)
    assert not Path("results").exists() and not jobs


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        speceval.run("zoo", "lk-eagle3", temperature=1, temprature=2)  # type: ignore[call-arg]


def test_another_run_in_the_directory_is_refused_by_the_parameters_name(jobs: list[Job]) -> None:
    measured(out="here")
    with pytest.raises(speceval.UserError, match=r"^out here holds another run"):
        measured(out="here", k=2)


def test_what_a_replay_inherits_may_be_given_only_as_it_is(jobs: list[Job]) -> None:
    measured(out="texts", max_tokens=9)
    with pytest.raises(speceval.UserError, match=r"^max_tokens: the run that is replayed has 9: leave it out"):
        measured(replay="texts", max_tokens=8)
    with pytest.raises(speceval.UserError, match=r"^temperature: the run that is replayed has 1.0"):
        measured(replay="texts", temperature=0.5)


def test_only_flags_become_parameters() -> None:
    with pytest.raises(speceval.NotComparable) as error, errors_by_parameter({"--out": "path"}):
        raise speceval.NotComparable("through with --allow x-y, or --engine-arg a=b --out; lk--eagle and -- stay")
    assert str(error.value) == "through with allow x-y, or engine_args a=b path; lk--eagle and -- stay"


def test_verify_refuses_in_the_words_of_its_parameters(jobs: list[Job]) -> None:
    for asked, says in (
        ({"temperature": 0}, "^temperature 0: greedy decoding samples nothing"),
        ({"tokens": 1}, "^tokens 1: at least 2"),
        ({"prompts": "Once"}, "^prompts 'Once': one alone"),
    ):
        with pytest.raises(speceval.UserError, match=says):
            speceval.verify("zoo", "lk-eagle3", **asked)  # type: ignore[arg-type]
    assert not Path("results").exists()


class Talkative(SimulatedEngine):
    """Writes in every way that an engine does."""

    def warm_up(self) -> None:
        print("by print")
        print("by print to stderr", file=sys.stderr)
        os.write(1, b"by descriptor\n")
        logging.getLogger("talkative").warning("by a logger")


def test_a_call_prints_nothing_and_the_engines_words_are_in_its_log(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "start_engine", lambda job: Talkative((0.7,) * job.spec.k, batch=job.spec.batch))
    handler = logging.StreamHandler(sys.stdout)  # as vLLM's is, when it was imported before
    logging.getLogger("talkative").addHandler(handler)
    streams = sys.stdout, sys.stderr
    try:
        measured(out="quiet")
        assert (sys.stdout, sys.stderr, handler.stream) == (*streams, sys.stdout)
    finally:
        logging.getLogger("talkative").removeHandler(handler)
    assert capfd.readouterr() == ("", "")
    log = Path("quiet/engine.log").read_text()
    for words in ("by print\n", "by print to stderr\n", "by descriptor\n", "by a logger\n"):
        assert words in log


def test_progress_is_shown_on_stderr_where_it_is_asked_for(jobs: list[Job], capfd: pytest.CaptureFixture[str]) -> None:
    measured(out="shown", progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "starting simulated; its log: shown/engine.log" in err


IN_A_NOTEBOOK = """
import logging, os, sys
from speceval.engines.simulated import SimulatedEngine
import speceval

def warm_up(engine):
    print("by print")
    os.write(2, b"by descriptor\\n")
    logging.getLogger("vllm").warning("by a logger")

logging.getLogger("vllm").addHandler(logging.StreamHandler(sys.stdout))
SimulatedEngine.warm_up = warm_up
"""


@pytest.mark.slow
def test_in_a_notebook_a_run_shows_its_table_and_nothing_of_the_engine(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    call = "speceval.run('zoo', 'lk-eagle3', temperature=1, engine='simulated', out='here'{})"
    cells = [IN_A_NOTEBOOK, call.format(""), call.format(", progress=True, k=2").replace("here", "there")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths}
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute(
        env=environment
    )
    quiet, shown = (notebook.cells[index].outputs for index in (1, 2))
    assert [output.output_type for output in quiet] == ["execute_result"]
    assert "position 1" in quiet[0].data["text/html"]
    said = "".join(output.text for output in shown if output.output_type == "stream")
    assert said.startswith("starting simulated; its log: there/engine.log") and "by " not in said
    log = (tmp_path / "here" / "engine.log").read_text()
    assert all(words in log for words in ("by print", "by descriptor", "by a logger"))


@pytest.mark.engine
def test_a_script_measures_on_vllm_prints_nothing_and_gets_its_number(tmp_path: Path, zoo: dict[str, Path]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import speceval\n"
        "run = speceval.run('zoo', 'lk-eagle3', temperature=1, limit=2, max_tokens=8, out='run')\n"
        "assert speceval.validate(run) == [] and run.tau().value > 1\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "vLLM" in (tmp_path / "run" / "engine.log").read_text()
