"""An engine or a request that nothing makes right is stopped in the frontend, with one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support import tiny

from vllm_patches import guard, ledger, state
from vllm_patches.refuse import MEASURED_SWITCH
from vllm_patches.settings import KNOWN_ANSWER

SAMPLED = {"method": "eagle3", "num_speculative_tokens": 3, "draft_sample_method": "probabilistic"}

FORCED = {"rejection_sample_method": "synthetic"}


def config(
    runner: str = "V1", device: str = "cpu", additional: dict[str, Any] | None = None, **changed: Any
) -> SimpleNamespace:
    """As much of a VllmConfig as is read."""
    speculative = SimpleNamespace(
        **SAMPLED | {"rejection_sample_method": "standard", "draft_model_config": None} | changed
    )
    return SimpleNamespace(
        speculative_config=speculative,
        model_config=SimpleNamespace(get_vocab_size=lambda: 24),
        use_v2_model_runner=runner == "V2",
        parallel_config=SimpleNamespace(),
        device_config=SimpleNamespace(device_type=device),
        additional_config=additional or {},
    )


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.32.0 whose sources are the ledger's, nothing of it imported; nobody measures, nothing was warned of."""
    for name in (guard.WARNED, MEASURED_SWITCH):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(guard, "vllm_version", lambda: "0.32.0+cpu")
    monkeypatch.setattr(guard, "judge", lambda patch: (state.NOT_LOADED, ""))
    monkeypatch.setattr(guard, "misfit", lambda patch: "")


def test_an_engine_that_fits_may_start(fits: None) -> None:
    assert guard.refusal(config()) is None
    assert guard.refusal(config("V2", "cuda")) is None


@pytest.mark.parametrize("option", ["enable_adaptive_verification", "enable_batch_sharded_sampling"])
def test_what_cannot_be_recorded_stops_only_an_engine_that_is_to_be_measured(
    fits: None, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    engine = config("V2", "cuda")
    part = engine.speculative_config if "adaptive" in option else engine.parallel_config
    setattr(part, option, True)
    assert guard.refusal(engine) is None
    monkeypatch.setenv(MEASURED_SWITCH, "1")
    assert (guard.refusal(engine) or "").startswith(f"{option}: ")
    setattr(part, option, False)
    assert guard.refusal(engine) is None


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname != "INFO"]


def test_a_source_that_no_row_knows_is_warned_of_once_by_the_engines_that_need_the_row(
    fits: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard, "misfit", lambda patch: "unknown" if patch.id in ("v1-medusa", "v1-missing-q") else "")
    for _ in range(2):
        guard.examine(config(method="medusa"))
    (line,) = lines(caplog)
    assert "do not fit: v1-missing-q, v1-medusa (unknown)" in line and "SPECEVAL_PATCHES=0" in line


def test_a_source_that_no_row_knows_stops_an_engine_that_is_to_be_measured(
    fits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MEASURED_SWITCH, "1")
    monkeypatch.setattr(guard, "misfit", lambda patch: "unknown" if patch.id == "v1-medusa" else "")
    guard.examine(config())
    with pytest.raises(ValueError, match="v1-medusa, which does not fit: unknown"):
        guard.examine(config(method="medusa"))


def test_a_combination_known_to_be_wrong_stops_every_engine(fits: None) -> None:
    with pytest.raises(ValueError, match="the V1 runner ignores it"):
        guard.examine(config(rejection_sample_method="block"))


@pytest.mark.parametrize("version", ["0.34.0", "0.28.1", "dev", None])
def test_an_unknown_version_starts_as_it_is_with_one_warning_unless_it_is_to_be_measured(
    fits: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str | None
) -> None:
    """Nothing of its config is read: another vLLM may name it otherwise."""
    monkeypatch.setattr(guard, "vllm_version", lambda: version)
    unknown = SimpleNamespace(speculative_config=object())
    for _ in range(2):
        guard.examine(unknown)
    (line,) = lines(caplog)
    says = (f"vLLM {version}", "vllm>=0.29,<0.34", "nothing is patched", "SPECEVAL_PATCHES=0 silences this")
    assert all(part in line for part in says), line
    monkeypatch.setenv(MEASURED_SWITCH, "1")
    with pytest.raises(ValueError, match="is not supported"):
        guard.examine(unknown)


def test_an_unknown_version_judges_no_request(fits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "vllm_version", lambda: "0.34.0")
    validate = guard.guard_request(lambda self, params: "validated")
    params = SimpleNamespace(structured_outputs=object(), temperature=1.0)
    assert validate(SimpleNamespace(), params) == "validated"


def test_a_version_without_the_place_to_guard_says_so_once(
    fits: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        guard.hook(ModuleType("vllm.engine.arg_utils"))
    assert ["has no EngineArgs.create_engine_config" in line for line in lines(caplog)] == [True]
    monkeypatch.setattr(guard, "vllm_version", lambda: "0.34.0")
    for name in guard.HOOKS:
        guard.hook(ModuleType(name))
    assert ["nothing is patched" in line for line in lines(caplog)] == [False, True]


@pytest.mark.parametrize("additional", [None, {KNOWN_ANSWER: False}, {KNOWN_ANSWER: 1}, {KNOWN_ANSWER: "true"}])
def test_forced_acceptance_is_refused_in_every_run_but_a_self_test(
    fits: None, additional: dict[str, Any] | None
) -> None:
    """Only the setting's own value opens, and only for synthetic."""
    assert "nothing to measure" in (guard.refusal(config(additional=additional, **FORCED)) or "")
    allowed = {KNOWN_ANSWER: True}
    assert guard.refusal(config(additional=allowed, **FORCED)) is None
    assert "lossy by design" in (guard.refusal(config(additional=allowed, rejection_sample_method="fly")) or "")
    assert "ignores it" in (guard.refusal(config(additional=allowed, rejection_sample_method="block")) or "")


def test_the_summary_names_what_this_engine_needs_and_what_was_left_out(
    fits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = {"v1-missing-q"}
    monkeypatch.setattr(guard, "judge", lambda p: (state.OFF if p.id in off else state.NOT_LOADED, ""))
    line = guard.summary(config())
    assert line.startswith("vLLM 0.32.0+cpu, V1 runner, eagle3: patches cpu-expand, ")
    assert "v1-medusa" not in line and "; v1-missing-q switched off" in line
    assert "patches nothing" in guard.summary(config("V2", "cuda"))


@pytest.mark.skipif(state.vllm_version() is None, reason="reads the installed vLLM's files")
def test_the_source_on_disk_is_the_one_that_is_inspected_after_import() -> None:
    """Every row of the ledger was written from `inspect.getsource`; the file gives the same text without an import."""
    installed = str(state.vllm_version()).partition("+")[0]
    for patch in ledger.LEDGER:
        if installed in patch.sources:
            text = guard.symbol_source(patch)
            assert text is not None and state.digest(text) == patch.sources[installed], patch.id


def test_hooking_twice_wraps_once_and_a_missing_method_is_left_alone(fits: None) -> None:
    module = ModuleType("vllm.engine.arg_utils")

    class EngineArgs:
        def create_engine_config(self) -> Any:
            return config(rejection_sample_method="fly")

    module.EngineArgs = EngineArgs  # type: ignore[attr-defined]
    guard.hook(module)
    once = EngineArgs.create_engine_config
    guard.hook(module)
    assert EngineArgs.create_engine_config is once
    with pytest.raises(ValueError, match="fly is lossy by design"):
        EngineArgs().create_engine_config()
    del EngineArgs.create_engine_config
    guard.hook(module)


@pytest.mark.parametrize("doubted", ["v2-grammar-drafts", "v2-grammar-cut"])
@pytest.mark.parametrize(
    ("runner", "temperature", "grammar", "stopped"),
    [("V2", 1.0, True, True), ("V2", 0.0, True, False), ("V2", 1.0, False, False), ("V1", 1.0, True, False)],
)
def test_a_sampled_request_with_a_grammar_is_stopped_on_the_v2_runner_where_a_row_for_it_does_not_fit(
    fits: None,
    monkeypatch: pytest.MonkeyPatch,
    doubted: str,
    runner: str,
    temperature: float,
    grammar: bool,
    stopped: bool,
) -> None:
    monkeypatch.setattr(guard, "misfit", lambda patch: "unknown" if patch.id == doubted else "")
    validate = guard.guard_request(lambda self, params: "validated")
    processor = SimpleNamespace(vllm_config=config(runner))
    params = SimpleNamespace(structured_outputs=object() if grammar else None, temperature=temperature)
    if stopped:
        with pytest.raises(ValueError, match="breaks the grammar"):
            validate(processor, params)
    else:
        assert validate(processor, params) == "validated"


def test_a_sampled_request_with_a_grammar_passes_on_the_v2_runner_where_the_rows_for_it_fit(fits: None) -> None:
    validate = guard.guard_request(lambda self, params: "validated")
    params = SimpleNamespace(structured_outputs=object(), temperature=1.0)
    assert validate(SimpleNamespace(vllm_config=config("V2")), params) == "validated"


START = """
import json, sys
from vllm import LLM
try:
    LLM(**json.loads(sys.argv[1]))
except Exception as error:
    print("RAISED", str(error).splitlines()[0])
"""


@pytest.mark.slow
@pytest.mark.engine
def test_plain_vllm_refuses_to_start_what_the_plugin_cannot_make_right(tmp_path: Path) -> None:
    """Nothing of speceval is imported: vLLM loads the plugin by its entry point."""
    target = tiny.write_target(tmp_path / "target")
    drafter = tiny.write_eagle3(tmp_path / "drafter", target)
    arguments = {
        "model": str(target),
        "skip_tokenizer_init": True,
        "speculative_config": SAMPLED | {"model": str(drafter), "rejection_sample_method": "block"},
    }
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, "-c", START, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "RAISED rejection_sample_method=block: the V1 runner ignores it" in done.stdout, done.stderr


NEWER = """
import sys
from vllm_patches import guard, state
guard.vllm_version = state.vllm_version = lambda: "0.35.0"
from vllm.engine.arg_utils import EngineArgs
for _ in range(2):
    EngineArgs(model=sys.argv[1], skip_tokenizer_init=True, speculative_config=CONFIG).create_engine_config()
print("PATCHED", [row.id for row in state.status() if row.state == "active"])
"""


@pytest.mark.slow
@pytest.mark.engine
def test_a_newer_vllm_resolves_its_config_unpatched_with_one_warning(tmp_path: Path) -> None:
    """The vLLM that is installed, under another version: block verification would be refused on its own."""
    target = tiny.write_target(tmp_path / "target")
    drafter = tiny.write_eagle3(tmp_path / "drafter", target)
    speculative = SAMPLED | {"model": str(drafter), "rejection_sample_method": "block"}
    command = [sys.executable, "-c", NEWER.replace("CONFIG", repr(speculative)), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, guard.WARNED: ""})
    assert done.returncode == 0, done.stderr
    told = [line for line in (done.stdout + done.stderr).splitlines() if "vllm_patches:" in line]
    assert len(told) == 1 and "WARNING" in told[0] and "vLLM 0.35.0 is not known to the patches" in told[0], told
    assert "PATCHED []" in done.stdout
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, MEASURED_SWITCH: "1"})
    assert done.returncode and "vLLM 0.35.0 is not supported" in done.stderr
