"""How vLLM is started and what is asked of it, and that the answers are the worker processes' own."""

from __future__ import annotations

import builtins
import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from speceval.catalog import Draft, Target
from speceval.engines.base import Order
from speceval.engines.vllm import listing, offline, start
from speceval.errors import UserError
from speceval.store import read_run
from vllm_patches.ledger import LEDGER
from vllm_patches.refuse import MEASURED_SWITCH

ORDER = Order(
    "vllm",
    Target(name="t", source="hub", model="m"),
    Draft(name="d", source="hub", model="a/d", method="eagle3"),
    3,
    "probabilistic",
    1.0,
)


def test_settings_are_those_of_every_worker() -> None:
    assert offline.agreed([{"k": 3, "draft_truncation": True}] * 3) == {"k": 3, "draft_truncation": True}
    with pytest.raises(UserError, match="worker 2 has draft_truncation=False, worker 0 True: nothing was measured"):
        offline.agreed([{"draft_truncation": True}, {"draft_truncation": True}, {"draft_truncation": False}])


def test_what_was_there_before_an_engine_starts_is_no_garbage_of_its_own_until_it_has() -> None:
    with pytest.raises(KeyError), offline.set_aside():
        assert gc.get_freeze_count() > 1000
        raise KeyError
    assert gc.get_freeze_count() == 0


def test_no_garbage_is_collected_while_vllm_is_imported_and_it_is_as_before_afterwards() -> None:
    with pytest.raises(KeyError), offline.uncollected():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with offline.uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_engine_starts_whatever_this_process_has_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As llvmlite's library, which n-gram drafts import, or a web framework's proxy: no engine could follow them."""
    dispatcher = pytest.importorskip("vllm.triton_utils.dispatcher")

    class Library:
        __slots__ = ()

        def __getattr__(self, name: str) -> Any:
            return lambda: None

    class Proxy:
        @property
        def __dict__(self) -> Any:
            raise RuntimeError("outside of its context")

    odd = ModuleType("odd")
    odd.library, odd.proxy = Library(), Proxy()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "odd", odd)
    for name in ("hasattr", "vars"):  # as an earlier engine of this process may have left them
        monkeypatch.setattr(dispatcher, name, getattr(builtins, name), raising=False)
    with pytest.raises((AttributeError, RuntimeError)):
        dispatcher._rebind_kernels([])
    offline.look_through_anything()
    dispatcher._rebind_kernels([])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "1 validation error for SpeculativeConfig\nprompt_lookup_maxx\n  Unexpected keyword argument [type=x, y]\n",
            "prompt_lookup_maxx: Unexpected keyword argument",
        ),
        ("1 validation error for C\n  Value error, no such K [type=value_error, input=3]", "no such K"),
        (f"X is not supported. Supported: dict_keys({['Architecture'] * 40})", "X is not supported. Supported: […]"),
        ("one\ntwo\nthree", "one"),
        (
            "Failed to instantiate custom proposer class 'a.Medusa': ./head: its vocabulary is 3.5, not 4. "
            "The class constructor must accept VllmConfig as argument.",
            "./head: its vocabulary is 3.5, not 4",
        ),
        ("", "KeyError"),
    ],
)
def test_what_vllm_stumbles_over_at_its_start_is_told_in_a_line(text: str, told: str) -> None:
    assert offline._reason(KeyError() if not text else RuntimeError(text)) == told


class Evidence(offline.OfflineEngine):
    """An engine whose workers recorded what a test says."""

    def __init__(self, **drained: Any) -> None:
        self.drained = {"requests": [], "counts": [], "values": b"", "padded": 0, "broken": 0, "without_q": 0} | drained

    def facts(self) -> Any:
        return SimpleNamespace(rejection_sample_method=self.method)

    def heard(self, name: str) -> dict[str, Any]:
        return self.drained

    def listen(self, name: str) -> None:
        self.listening = name

    def unlisten(self, name: str) -> None:
        self.listening = ""

    method, listening = "standard", ""


def test_a_key_of_a_nested_argument_that_vllm_would_drop_is_refused() -> None:
    offline._check_parts({"compilation_config": {"mode": 0}, "hf_overrides": {"any": 1}, "dtype": "float32"})
    with pytest.raises(UserError, match="compilation_config: vLLM has no 'modes' there; did you mean mode"):
        offline._check_parts({"compilation_config": {"modes": 0}})


def test_nothing_recorded_is_told_from_rows_that_were_all_broken() -> None:
    assert Evidence().take_evidence() == (None, {"padded": 0, "broken": 0, "without_q": 0})
    rows, counts = Evidence(broken=3).take_evidence()
    assert rows is not None and len(rows["alpha"]) == 0 and counts["broken"] == 3


def test_evidence_is_taken_only_where_it_is_known_when_drafts_are_kept() -> None:
    engine = Evidence()
    assert engine.start_evidence() and engine.listening == "evidence"
    engine.take_evidence()
    assert engine.listening == ""
    engine.method = "block"
    assert engine.start_evidence()
    engine.take_evidence()
    engine.method = "synthetic"
    assert not engine.start_evidence() and engine.listening == ""


@pytest.mark.parametrize("before", [None, "0"])
def test_the_plugin_knows_while_the_engine_starts_that_it_is_one_to_measure(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """And not afterwards: another engine of the same process is none of speceval's."""
    seen: list[str | None] = []

    def refuse(**arguments: Any) -> None:
        seen.append(os.environ.get(MEASURED_SWITCH))
        raise ValueError("a patch does not fit")

    vllm, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.LLM, vllm.SamplingParams, sampling.RequestOutputKind = refuse, None, None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setattr(start, "require_vllm", lambda: "0.32.0")
    monkeypatch.setattr(start, "set_environment", lambda target, arguments: None)
    if before is None:
        monkeypatch.delenv(MEASURED_SWITCH, raising=False)
    else:
        monkeypatch.setenv(MEASURED_SWITCH, before)
    with pytest.raises(UserError, match="vLLM could not start: a patch does not fit"):
        offline.OfflineEngine(ORDER)
    assert seen == ["1"]
    assert os.environ.get(MEASURED_SWITCH) == before


class Core:
    """vLLM's client of an engine, of a version that cannot be told how long to wait."""

    def __init__(self) -> None:
        self.stopped: list[float | None] = []

    def shutdown(self) -> None:
        self.stopped.append(None)


class LaterCore(Core):
    def shutdown(self, timeout: float | None = None) -> None:
        self.stopped.append(timeout)


def test_an_engine_is_given_the_time_to_stop_its_workers_where_vllm_lets_us() -> None:
    old, new = Core(), LaterCore()
    offline.shut_down(old)
    offline.shut_down(new)
    assert (old.stopped, new.stopped) == ([None], [offline.SECONDS_TO_STOP])


def started(monkeypatch: pytest.MonkeyPatch, llm: Any) -> None:
    """From here on vLLM starts as `llm`."""
    vllm, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.LLM, vllm.SamplingParams = lambda **_: llm, None  # type: ignore[attr-defined]
    sampling.RequestOutputKind = SimpleNamespace(DELTA=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setattr(start, "require_vllm", lambda: "0.32.0")
    monkeypatch.setattr(start, "set_environment", lambda target, arguments: None)


@pytest.mark.parametrize("core", [Core(), LaterCore()])
def test_an_engine_whose_workers_do_not_obey_is_shut_down_before_it_is_refused(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=None, engine_core=core), get_tokenizer=lambda: None)
    started(monkeypatch, llm)
    monkeypatch.setattr(offline, "ask_disobedience", lambda *_: "worker 0 has other switches")
    with pytest.raises(UserError, match="worker 0 has other switches: nothing was measured"):
        offline.OfflineEngine(ORDER)
    assert len(core.stopped) == 1


def test_an_engine_that_dies_while_it_is_closed_does_not_hide_why_it_was_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dead(Core):
        def shutdown(self) -> None:
            raise RuntimeError("the engine core is gone")

    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=None, engine_core=Dead()))
    started(monkeypatch, llm)
    monkeypatch.setattr(offline.OfflineEngine, "_check_workers", lambda self: None)
    with pytest.raises(KeyboardInterrupt), closing(offline.OfflineEngine(ORDER)):
        raise KeyboardInterrupt
    assert "the engine core is gone" in capsys.readouterr().err


WORKERS = {
    "obeys": ("vllm_patches.worker.Extension", "--no-draft-truncation"),
    "never got the setting": ("support.deaf_worker.Unconfigured", "--no-draft-truncation"),
    "obeyed another switch": ("support.deaf_worker.OtherSwitches",),
    "does not record": ("support.deaf_worker.NoRecorder",),
}
"""Worker extension and options of each run; the engine of the first is in a process of its own."""


@pytest.mark.engine
@pytest.mark.slow
class TestAnotherProcess:
    """Whether workers that do not do as they are told (`deaf_worker`) are noticed."""

    @pytest.fixture(scope="class")
    def done(
        self, zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
    ) -> dict[str, tuple[subprocess.CompletedProcess[str], Path]]:
        """What each of WORKERS came to, and the run's directory; two at a time."""
        root = tmp_path_factory.mktemp("workers")
        with ThreadPoolExecutor(2) as pool:
            return dict(
                zip(WORKERS, pool.map(lambda name: self.run(root / name, *WORKERS[name]), WORKERS), strict=True)
            )

    def run(self, folder: Path, extension: str, *options: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        code = (
            "from speceval import cli\nfrom speceval.engines.vllm import start\n"
            f"start.EXTENSION = {extension!r}\ncli.main()"
        )
        zoo = ("run", "--target", "zoo", "--draft", "lk-eagle3", "--temp", "1", "--top-k", "8")
        small = ("--limit", "2", "--max-tokens", "8", "--batch", "2", "--out", "run")
        environment = os.environ | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(extension == WORKERS["obeys"][0])),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        folder.mkdir()
        command = [sys.executable, "-c", code, *zoo, *small, *options]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True), folder / "run"

    def test_a_worker_that_obeys_is_measured(self, done: dict[str, Any]) -> None:
        result, directory = done["obeys"]
        assert result.returncode == 0, result.stderr
        assert read_run(directory).meta.fingerprint.engine.draft_truncation is False

    def test_an_engine_in_another_process_is_stopped_in_order(self, done: dict[str, Any]) -> None:
        """vLLM warns of what it has to kill, and Python of memory that nobody gave back."""
        result, directory = done["obeys"]
        assert [line for line in result.stderr.splitlines() if not line.startswith("starting vllm")] == []
        assert "WARNING" not in result.stdout
        log = (directory / "engine.log").read_text()
        assert "force killing" not in log and "leaked" not in log

    @pytest.mark.parametrize(
        ("worker", "says"),
        [
            ("never got the setting", "the engine resolved draft_truncation to True, asked for False"),
            ("obeyed another switch", "worker 0 was started with SPECEVAL_PATCHES_SKIP='cpu-expand', asked for None"),
            ("does not record", "worker 0 records nothing, asked for overlap"),
        ],
    )
    def test_a_worker_that_does_not_stops_the_run_with_one_line(
        self, done: dict[str, Any], worker: str, says: str
    ) -> None:
        result, directory = done[worker]
        assert result.returncode == 4 and "Traceback" not in result.stderr
        assert f"{says}: nothing was measured" in result.stderr
        assert not (directory / "run.json").exists()


def test_an_engine_tells_of_the_patches_of_its_own_model_runner() -> None:
    """Else a change of V1's would be one of all runs on V2."""

    def own(runner: str, method: str) -> set[str]:
        return {row.id for row in LEDGER if listing.concerns(row.id, runner, method)}

    assert own("V1", "eagle3") == own("V1", "medusa") == {row.id for row in LEDGER if row.runner != "V2"}
    assert own("V2", "eagle3") == {"cpu-rotary", "v2-draft-truncation", "v2-sampling-states"}
    assert own("V2", "dspark") == own("V2", "eagle3") | {"v2-dspark-truncation"}
    assert own("V2", "dflash") == own("V2", "eagle3") | {"v2-candidate-truncation"}
    assert own("V2", "medusa") == own("V2", "mlp_speculator") == own("V2", "eagle3") | {"v2-heads", "v2-custom-class"}
