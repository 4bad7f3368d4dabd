"""The gates and the import hook, on a made-up module in place of vLLM."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vllm_patches import apply, ledger, state
from vllm_patches.ledger import Patch

SOURCE = "def double(x, times=2):\n    return x * times + 1  # one too many\n"
REPAIR = "def replace(original):\n    return lambda x, times=2: original(x, times) - 1\n"


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Patch]:
    """A ledger of one row for `madeup_engine.double`, on "vLLM 1.2.3+cpu"; the module is not imported yet."""
    (tmp_path / "madeup_engine.py").write_text(SOURCE)
    (tmp_path / "madeup_repair.py").write_text(REPAIR)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(state, "vllm_version", lambda: "1.2.3+cpu")
    monkeypatch.setattr(state, "device", lambda: "cpu")
    monkeypatch.delenv(state.SWITCH, raising=False)
    monkeypatch.delenv(state.SKIP, raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    template = ledger.LEDGER[0]
    made_up = replace(
        template,
        id="double",
        module="madeup_engine",
        symbol="double",
        replacement="madeup_repair",
        versions=">=1.2,<1.3",
        parameters=("x", "times=2"),
        sources={"1.2.0": "20fa82917e98f1e9"},
    )
    use(monkeypatch, made_up)
    yield made_up
    for name in ("madeup_engine", "madeup_repair"):
        sys.modules.pop(name, None)


def use(monkeypatch: pytest.MonkeyPatch, *rows: Patch) -> None:
    for module in (apply, state):
        monkeypatch.setattr(module, "LEDGER", rows)


def engine() -> ModuleType:
    return importlib.import_module("madeup_engine")


def only() -> state.PatchStatus:
    (found,) = state.status()
    return found


def test_a_module_imported_after_the_plugin_ran_is_patched(row: Patch) -> None:
    apply.register()
    assert only().state == "not loaded"
    assert engine().double(3) == 6
    assert only().state == "active"


def test_a_module_imported_before_the_plugin_ran_is_patched(row: Patch) -> None:
    assert engine().double(3) == 7
    assert only().state == "not applied"
    apply.register()
    assert engine().double(3) == 6
    assert only().state == "active"


def test_registering_twice_changes_nothing(row: Patch) -> None:
    apply.register()
    first, hooks = engine().double, len(sys.meta_path)
    apply.register()
    assert engine().double is first
    assert len(sys.meta_path) == hooks


def test_a_second_patch_of_the_same_symbol_is_refused(
    row: Patch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, row, replace(row, id="other"))
    monkeypatch.setattr(apply, "misfit", lambda patch: "")
    apply.register()
    assert engine().double(3) == 6
    first, second = state.status()
    assert (first.state, second.state) == ("active", "refused")
    assert "already carries the patch double" in second.reason
    assert "other refused" in caplog.text


@pytest.mark.parametrize("version", ["1.1.9", "1.3.0+cpu", "1.3.0rc1"])
def test_a_version_outside_the_range_is_refused(row: Patch, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "vllm_version", lambda: version)
    apply.register()
    assert engine().double(3) == 7
    assert only().state == "refused"
    assert only().reason == f"vLLM {version} is outside >=1.2,<1.3"


def test_a_version_that_cannot_be_read_is_refused_without_an_exception(
    row: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "vllm_version", lambda: "dev")
    apply.register()
    assert engine().double(3) == 7
    assert only().reason == "vLLM dev is outside >=1.2,<1.3"


@pytest.mark.parametrize("on_disk", ["", "an unknown source"])
def test_an_unknown_source_is_refused_and_logged_here_only_if_the_guard_cannot_see_it(
    row: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, on_disk: str
) -> None:
    (tmp_path / "madeup_engine.py").write_text(SOURCE.replace("+ 1", "+ 2"))
    monkeypatch.setattr(apply, "misfit", lambda patch: on_disk)
    caplog.set_level("INFO")
    apply.register()
    assert engine().double(3) == 8
    assert only().state == "refused"
    assert "unknown source" in only().reason
    assert ("double refused" in caplog.text) == (not on_disk)


def test_another_signature_is_refused(row: Patch, tmp_path: Path) -> None:
    (tmp_path / "madeup_engine.py").write_text(SOURCE.replace("times=2", "times=3"))
    apply.register()
    assert engine().double(3) == 10
    assert only().reason.endswith("takes (x, times=3), expected (x, times=2)")


def test_a_symbol_that_is_gone_is_refused(row: Patch, tmp_path: Path) -> None:
    (tmp_path / "madeup_engine.py").write_text("")
    apply.register()
    engine()
    assert (only().state, only().reason.endswith("does not exist")) == ("refused", True)


def test_the_state_is_read_off_the_live_symbol(row: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = engine().double
    apply.register()
    assert only().state == "active"
    monkeypatch.setattr(engine(), "double", stock)
    assert only().state == "not applied"


@pytest.mark.parametrize(("name", "value"), [("SPECEVAL_PATCHES", "0"), ("VLLM_PLUGINS", "a, b")])
def test_either_switch_turns_the_patches_off(
    row: Patch, name: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, value)
    apply.register()
    assert engine().double(3) == 7
    assert only().state == "switched off"
    assert not caplog.records, "a switch that was set on purpose needs no warning"


def test_vllm_s_own_switch_can_name_the_plugin(row: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", f"a, {state.PLUGIN}")
    apply.register()
    assert engine().double(3) == 6


def test_another_platform_is_left_alone_whatever_its_version(
    row: Patch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state, "device", lambda: "cuda")
    monkeypatch.setattr(state, "vllm_version", lambda: "9.9")
    apply.register()
    assert engine().double(3) == 7
    assert only().state == "not needed"
    assert caplog.text == ""


def test_a_failing_replacement_leaves_vllm_as_it_is_and_says_so(
    row: Patch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "madeup_repair.py").write_text("raise OSError\n")
    apply.register()
    assert engine().double(3) == 7
    assert only().state == "not applied"
    assert "could not be applied" in caplog.text


def test_without_vllm_nothing_is_needed(row: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "vllm_version", lambda: None)
    assert (only().state, only().reason) == ("not needed", "vLLM is not installed")


def test_a_run_needs_the_patch_only_on_its_platform_and_above_temperature_zero(row: Patch) -> None:
    engine()
    inactive = state.status()
    assert state.missing(inactive, device="cpu", temperature=0.7) == [str(inactive[0])]
    assert state.missing(inactive, device="cpu", temperature=0) == []
    assert state.missing(inactive, device="cuda", temperature=0.7) == []
    apply.register()
    active = state.status()
    assert state.missing(active, device="cpu", temperature=0.7) == []
    assert state.missing(active + inactive, device="cpu", temperature=0.7) == [str(inactive[0])]


@pytest.mark.parametrize(
    ("fields", "run", "needed"),
    [
        ({"device": "any"}, {"device": "cuda"}, True),
        ({"device": "any", "runner": "V2"}, {"device": "cuda"}, False),
        ({"device": "any", "runner": "V2"}, {"device": "cuda", "runner": "V2"}, True),
        ({"methods": ("medusa",)}, {"method": "eagle3"}, False),
        ({"methods": ("medusa",)}, {"method": "medusa"}, True),
        ({"methods": ("medusa",)}, {}, True),
        ({"sampling_only": False}, {"temperature": 0.0}, True),
    ],
)
def test_a_run_needs_only_the_rows_of_its_runner_and_method(
    row: Patch,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    run: dict[str, Any],
    needed: bool,
) -> None:
    use(monkeypatch, replace(row, **fields))
    engine()
    settings: dict[str, Any] = {"device": "cpu", "temperature": 1.0} | run
    assert bool(state.missing(state.status(), **settings)) is needed


def test_a_version_that_is_right_itself_is_left_alone_and_may_measure(
    row: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, replace(row, native=">=1.2.3"))
    apply.register()
    assert engine().double(3) == 7
    assert only().state == "native"
    assert state.missing(state.status(), device="cpu", temperature=1.0) == []


def test_a_single_row_can_be_left_out(row: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(state.SKIP, "other, double")
    apply.register()
    assert engine().double(3) == 7
    assert (only().state, only().reason) == ("switched off", "SPECEVAL_PATCHES_SKIP names it")


def test_a_parameter_with_a_default_may_have_been_added_at_the_end(row: Patch, tmp_path: Path) -> None:
    (tmp_path / "madeup_engine.py").write_text(SOURCE.replace("times=2)", "times=2, more=None)"))
    apply.register()
    engine()
    assert "unknown source" in only().reason  # the signature passes, the source does not


def test_a_patch_that_no_worker_reports_is_missing(row: Patch) -> None:
    assert state.missing([], device="cpu", temperature=1.0) == ["double: not reported"]


def test_importing_and_asking_need_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, vllm_patches, vllm_patches.worker\n"
        "vllm_patches.status(); vllm_patches.register(); vllm_patches.status()\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'vllm', 'speceval'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
