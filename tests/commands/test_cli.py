"""The command line: one clear line for each kind of bad input, one JSON object for machines, resumption."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.machine import can_mount

import speceval
from speceval import cli, protocol
from speceval.commands import options
from speceval.engines.simulated import SimulatedEngine
from speceval.engines.vllm import start
from speceval.errors import UserError
from speceval.measure import fingerprint, record
from speceval.protocol import RunSpec
from speceval.store import schema
from speceval.store.schema import Facts, Fingerprint, RunMeta
from vllm_patches import versions

PROMPTS = [{"turns": [f"question {n}", "and then?"], "category": "c"} for n in range(30)]


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def line(self) -> str:
        """The complaint, which must be a single line without a traceback."""
        assert self.code == cli.EXIT_BAD_INPUT, (self.code, self.out, self.err)
        lines = [line for line in self.err.splitlines() if not line.startswith("starting simulated; its log: ")]
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["speceval", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory with a suite."""
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return tmp_path


ON_VLLM = ("run", "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1")
RUN = (*ON_VLLM, "--engine", "simulated")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--target", "gpt-oss-121b"), "unknown target 'gpt-oss-121b'; did you mean gpt-oss-120b"),
        (("--draft", "lk-eagle4"), "unknown drafter 'lk-eagle4'.*did you mean lk-eagle3"),
        (
            ("--target", "gpt-oss-120b", "--draft", "lk-medusa"),
            "belongs to Llama-3.1-8B-Instruct.*not to.*gpt-oss-120b",
        ),
        (("--target", "llama-3.1-8b-instruct", "--draft", "lk-medusa", "--k", "9"), "at most K=6"),
        (("--k", "0"), "K must be at least 1"),
        (("--temp", "-1"), "--temp: .*got -1"),
        (("--temp", "warm"), "--temp.*valid number"),
        (("--suite", "gsm9k"), "unknown suite 'gsm9k'; did you mean gsm8k"),
        (("--suite", "gsm8k", "--data-dir", "."), "suite gsm8k: no file gsm8k_test.jsonl.* in"),
        (("--suite", "nothing.jsonl"), "no such file"),
        (("--suite", ","), "--suite ,: holds no name"),
        (("--speedup-batch", "4"), "--speedup-batch: has no meaning without --speedup"),
        (("--url", "http://me:pass@host:8000"), "--url: holds a secret"),
        (("--url", "http://host:8000/?api_key=abc"), "--url: holds a secret"),
        (("--seeds", "1-x"), "--seeds 1-x: not a list"),
        (("--seeds", "1,1"), "--seeds.*twice"),
        (("--speedup", "--speedup-batch", "0"), "--speedup-batch: batch sizes are whole numbers from 1"),
        (("--speedup", "--speedup-batch", "64"), "at batch 64 at least 64 are needed: ask for a smaller"),
        (("--drafting", "lucky"), "--drafting"),
        (("--draft", "ngram", "--k", "3", "--drafting", "greedy"), "ngram.*drafts deterministic"),
        (("--engine-arg", "dtype"), "not of the form key=value"),
        (("--engine-arg", "hf_token=abc"), "hf_token is a secret"),
        (("--out", "own.jsonl"), "own.jsonl: not a directory"),
        (("--out", "/dev/full"), "/dev/full: not a directory"),
        (("--limt", "3"), "--limt"),
        (("--engine", "vlm"), "--engine vlm: there is no such engine; there are vllm, simulated"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(call, simulated: Path, arguments: tuple[str, ...], says: str) -> None:
    before = sorted(simulated.rglob("*"))
    assert re.search(says, call(*RUN, "--suite", "own.jsonl", *arguments).line)
    assert sorted(simulated.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"turns": [1]}\n', "row"),
        ('{"prompt": "a"}\n{"other": 1}\n', "row"),
        ("not json\n", "row"),
        ("", "empty|no rows"),
    ],
)
def test_a_malformed_suite_is_named_by_row(call, simulated: Path, content: str, says: str) -> None:
    Path("bad.jsonl").write_text(content)
    line = call(*RUN, "--suite", "bad.jsonl").line
    assert "bad.jsonl" in line and re.search(says, line)


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """From here on that vLLM is installed; None: no vLLM at all."""

    def of(name: str) -> str:
        if version is None:
            raise start.importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(start.importlib.metadata, "version", of)
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize("kind", [ValueError, ModuleNotFoundError])
def test_a_fault_of_our_own_is_no_verdict_and_its_traceback_steers_nothing(
    call, simulated: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*_: Any) -> None:
        raise kind("https://u:S3CR3T@h\n::error::x \x1b[31m\u202e")

    monkeypatch.setattr("speceval.store.directories", fail)
    done = call("validate", "x")
    assert done.code == 70
    assert "S3CR3T" not in done.err and "\n::error" not in done.err and not {"\x1b", "\u202e"} & set(done.err)
    assert "Traceback" in done.err and done.err.splitlines()[-1].startswith("error: a fault of speceval's own")


def test_a_missing_vllm_is_said_with_the_mend(call, simulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)
    assert "vLLM is not installed: pip install" in call(*ON_VLLM, "--suite", "own.jsonl").line
    assert not Path("results").exists()


@pytest.mark.parametrize("version", ["0.28.1", f"{versions.NEXT}.0", "1.0"])
def test_an_unsupported_vllm_is_said_with_the_range(call, simulated: Path, monkeypatch, version: str) -> None:
    installed(monkeypatch, version)
    line = call(*ON_VLLM, "--suite", "own.jsonl").line
    assert f"vLLM {version} is not supported: install vllm{versions.SPAN}" in line


def test_json_is_one_object_with_the_promised_shape(call, simulated: Path) -> None:
    outcome = call(*RUN, "--suite", "own.jsonl", "--k", "4", "--json", "--out", "run")
    assert outcome.code == 0, outcome.err
    shown = json.loads(outcome.out)
    assert (shown["target"], shown["draft"], shown["temperature"], shown["k"]) == ("zoo", "lk-eagle3", 1.0, 4)
    suite = shown["suites"]["own"]
    for name in ("tau", "tau_committed", "tau_paper", "tau_request_mean"):
        assert suite[name]["low"] < suite[name]["value"] < suite[name]["high"]
    assert len(suite["positions"]) == 4
    assert suite["positions"][0].keys() >= {"accepted", "drafted", "reached", "unconditional", "conditional"}
    assert suite["conversations"] == 30 and suite["drafted"] == 4 * suite["steps"]
    assert 0 < suite["accepted"] < suite["drafted"] and suite["committed"] > suite["steps"]
    assert json.loads(call("show", "run", "--json").out) == shown


def test_the_table_shows_every_acceptance_length_with_its_error(call, simulated: Path) -> None:
    out = call(*RUN, "--suite", "own.jsonl", "--out", "run").out
    for label in ("tau ", "tau committed", "tau paper", "tau request mean", "position 5", "conversations", "±"):
        assert label in out
    assert call("show", "run").out == out


def test_the_same_command_on_a_finished_run_generates_nothing(call, simulated: Path, monkeypatch) -> None:
    first = call(*RUN, "--suite", "own.jsonl", "--json").out
    monkeypatch.setattr(SimulatedEngine, "open", lambda order: pytest.fail("an engine was started"))
    assert call(*RUN, "--suite", "own.jsonl", "--json").out == first


def test_an_interrupt_keeps_what_is_finished_and_the_same_command_resumes(call, simulated: Path, monkeypatch) -> None:
    steps = 0
    original = SimulatedEngine.step

    def interrupted(self: SimulatedEngine) -> Any:
        nonlocal steps
        steps += 1
        if steps == 60:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(SimulatedEngine, "step", interrupted)
    outcome = call(*RUN, "--suite", "own.jsonl", "--batch", "4", "--out", "run")
    assert outcome.code == cli.EXIT_INTERRUPTED and "the same command resumes" in outcome.err
    assert "UNFINISHED" in call("show", "run").out
    assert call(*RUN, "--suite", "own.jsonl", "--batch", "4", "--out", "run", "--json").code == 0
    assert json.loads(call("show", "run", "--json").out)["suites"]["own"]["conversations"] == 30


class LaterSpec(RunSpec):
    """The request of a later version of speceval, which can ask for more."""

    thinking: bool = False


class LaterFacts(Facts):
    """Its engine tells more."""

    nodes: int = 1


class LaterFingerprint(Fingerprint):
    """Its fingerprint."""

    engine: LaterFacts


class LaterMeta(RunMeta):
    """Its record."""

    spec: LaterSpec
    fingerprint: LaterFingerprint


def later(monkeypatch: pytest.MonkeyPatch, nodes: int = 1) -> None:
    """From here on that later version runs, on so many nodes."""
    facts = SimulatedEngine.facts
    monkeypatch.setattr(protocol, "RunSpec", LaterSpec)
    for module in (fingerprint, schema):
        monkeypatch.setattr(module, "Fingerprint", LaterFingerprint)
    for module in (record, schema):
        monkeypatch.setattr(module, "RunMeta", LaterMeta)
    monkeypatch.setattr(
        SimulatedEngine, "facts", lambda self: LaterFacts(**{**facts(self).model_dump(), "nodes": nodes})
    )


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C at that engine step, once."""
    original, steps = SimulatedEngine.step, 0

    def interrupted(self: SimulatedEngine) -> Any:
        nonlocal steps
        steps += 1
        if steps == at:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(SimulatedEngine, "step", interrupted)


@pytest.mark.parametrize("out", [(), ("--out", "run")], ids=["in results", "in a directory of its own"])
def test_a_run_that_was_begun_is_finished_by_a_version_that_can_ask_for_and_tell_more(
    call, simulated: Path, monkeypatch, out: tuple[str, ...]
) -> None:
    interrupt(monkeypatch, at=40)
    assert call(*RUN, "--suite", "own.jsonl", *out).code == cli.EXIT_INTERRUPTED
    (begun,) = simulated.glob("**/run.json")
    before = json.loads(begun.read_text())
    later(monkeypatch)
    finished = call(*RUN, "--suite", "own.jsonl", *out)
    assert finished.code == 0, finished.err
    assert list(simulated.glob("**/run.json")) == [begun]
    after = json.loads(begun.read_text())
    assert after["status"] == "complete" and after["spec"]["thinking"] is False
    assert [after[name] for name in ("name", "fingerprint_hash")] == [
        before[name] for name in ("name", "fingerprint_hash")
    ]
    assert call(*RUN, "--suite", "own.jsonl", *out).out == finished.out


def test_the_same_protocol_has_the_same_hash_in_a_version_that_tells_more(call, simulated: Path, monkeypatch) -> None:
    call(*RUN, "--suite", "own.jsonl", "--out", "now")
    later(monkeypatch)
    call(*RUN, "--suite", "own.jsonl", "--out", "then")
    now, then = (json.loads((simulated / name / "run.json").read_text()) for name in ("now", "then"))
    assert (now["name"], now["fingerprint_hash"]) == (then["name"], then["fingerprint_hash"])
    assert call("compare", "now", "then").code == 0


def test_a_baseline_of_an_earlier_version_is_held_against_a_run_that_tells_more(
    call, simulated: Path, monkeypatch
) -> None:
    call(*RUN, "--suite", "own.jsonl", "--out", "now")
    call("baseline", "now", "-o", "now.json")
    old = json.loads(Path("now.json").read_text())
    del old["fingerprint"]["replay"], old["fingerprint"]["engine"]["draft_truncation"]
    Path("older.json").write_text(json.dumps(old))
    for name in ("now.json", "older.json"):
        assert call("check", "now", "--baseline", name).code == 2  # compared, though too few for a pass


def test_what_a_later_version_tells_counts_when_it_is_not_what_it_stood_for(call, simulated: Path, monkeypatch) -> None:
    interrupt(monkeypatch, at=40)
    call(*RUN, "--suite", "own.jsonl", "--out", "run")
    later(monkeypatch, nodes=2)
    assert "engine.nodes: 1 -> 2" in call(*RUN, "--suite", "own.jsonl", "--out", "run").line


def test_a_run_of_a_later_version_is_refused_naming_the_field(call, simulated: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        later(patched)
        call(*RUN, "--suite", "own.jsonl", "--out", "run")
    assert "run.json: spec.thinking is not known to this speceval: update it" in call("show", "run").line


def test_a_directory_that_holds_another_run_is_refused_naming_the_field(call, simulated: Path) -> None:
    call(*RUN, "--suite", "own.jsonl", "--out", "run")
    line = call(*RUN, "--suite", "own.jsonl", "--top-k", "8", "--out", "run").line
    assert "holds another run (top_k: 0 -> 8)" in line


def test_resuming_under_another_engine_is_refused_naming_the_field(call, simulated: Path, monkeypatch) -> None:
    original = SimulatedEngine.step
    monkeypatch.setattr(SimulatedEngine, "step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    call(*RUN, "--suite", "own.jsonl", "--out", "run")
    monkeypatch.setattr(SimulatedEngine, "step", original)
    facts = SimulatedEngine.facts
    monkeypatch.setattr(SimulatedEngine, "facts", lambda self: facts(self).model_copy(update={"dtype": "float16"}))
    line = call(*RUN, "--suite", "own.jsonl", "--out", "run").line
    assert "cannot resume" in line and "engine.dtype: None -> float16" in line


def test_a_full_disk_is_one_line_and_the_run_resumes_elsewhere_free(call, simulated: Path) -> None:
    if not can_mount():
        pytest.skip("no mount: a small disk needs root")
    disk = simulated / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        line = call(*RUN, "--suite", "own.jsonl", "--seeds", "0-9", "--out", "disk/run").line
        assert "No space left on device" in line
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        outcome = call(*RUN, "--suite", "own.jsonl", "--seeds", "0-9", "--out", "disk/run", "--json")
        assert outcome.code == 0 and json.loads(outcome.out)["suites"]["own"]["samples"] == 300
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_output_that_cannot_be_written_is_one_line(simulated: Path, call) -> None:
    call(*RUN, "--suite", "own.jsonl", "--out", "run")
    with Path("/dev/full").open("w") as full:
        shown = subprocess.run(
            [sys.executable, "-m", "speceval", "show", "run"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert shown.returncode == cli.EXIT_BAD_INPUT
    assert shown.stderr == "error: cannot read or write: No space left on device\n"


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    """0.3 s is the promise, of processor time: a busy machine does not decide. The fastest of five counts."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "speceval", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3
    code = "import sys, speceval.cli; print([m for m in ('torch', 'vllm', 'pandas', 'datasets') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_seed_lists_and_ranges() -> None:
    assert options.seeds("0,2,5-7") == (0, 2, 5, 6, 7)
    with pytest.raises(UserError):
        options.seeds("a")


def test_key_value_pairs_are_read_as_yaml() -> None:
    pairs = ["dtype=float32", "max-model-len=512", "enforce_eager=true", "a={b: 1}"]
    expected = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True, "a": {"b": 1}}
    assert options.pairs(pairs, "--engine-arg") == expected


@pytest.mark.parametrize("what", ["targets", "drafters", "suites", "patches", "runs"])
def test_everything_can_be_listed(call, simulated: Path, what: str) -> None:
    outcome = call("ls", what)
    assert outcome.code == 0 and outcome.out.strip()


def test_the_version_is_the_package_s_own(call) -> None:
    outcome = call("--version")
    assert (outcome.code, outcome.out) == (0, f"speceval {speceval.__version__}\n")


def complete(typed: str) -> list[str]:
    """What bash would offer after `typed`."""
    words = {"_SPECEVAL_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    command = [sys.executable, "-m", "speceval"]
    done = subprocess.run(command, env={**os.environ, **words}, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_shell_completes_commands_and_options() -> None:
    assert complete("speceval ex") == ["explain", "export"]
    assert complete("speceval run --targ") == ["--target"]


def test_completion_can_be_shown_and_installed(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    outcome = call("--show-completion", "bash")
    assert outcome.code == 0 and "_SPECEVAL_COMPLETE=complete_bash" in outcome.out
    assert "--install-completion" in call("--help").out


@pytest.mark.parametrize("module", cli.COME_WITH_VLLM)
def test_a_package_that_comes_with_vllm_and_is_missing_is_one_line(
    call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str
) -> None:
    from speceval.exactness import kernels

    def absent(*_: Any, **__: Any) -> int:
        raise ModuleNotFoundError(f"No module named '{module}.nn'", name=f"{module}.nn")

    monkeypatch.setattr(kernels, "main", absent)
    line = call("verify", "--kernels").line
    assert f"{module}.nn is not installed, it comes with vLLM: pip install" in line and "make setup" in line


def test_a_missing_module_of_our_own_is_no_bad_input(call, monkeypatch: pytest.MonkeyPatch) -> None:
    from speceval.exactness import kernels

    def absent(*_: Any, **__: Any) -> int:
        raise ModuleNotFoundError("No module named 'speceval.gone'", name="speceval.gone")

    monkeypatch.setattr(kernels, "main", absent)
    done = call("verify", "--kernels")
    assert done.code == 70 and "ModuleNotFoundError: No module named 'speceval.gone'" in done.err


def test_a_demo_without_vllm_trains_nothing(call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent() -> str:
        raise UserError("vLLM is not installed")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "require_vllm", absent)
    monkeypatch.setattr("speceval.zoo.ensure", lambda names: pytest.fail("it trains"))
    for arguments in (("demo",), ("demo", "--all")):
        assert call(*arguments).line == "error: vLLM is not installed"
