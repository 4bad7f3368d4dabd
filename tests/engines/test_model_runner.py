"""`--runner`: what it puts into the environment before vLLM starts, what it takes back, and what it refuses."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import SimpleNamespace
from typing import Literal

import pytest

from speceval.engines.vllm import model_runner
from speceval.errors import UserError
from vllm_patches import interpreted

NAMES = (model_runner.CHOICE, *interpreted.ENVIRONMENT, *model_runner.APART)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU, no name set, and a process in which nothing is prepared."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(model_runner, "device", lambda: "cpu")
    monkeypatch.setattr(interpreted, "prepare", lambda: None)


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_without_a_choice_vllm_is_left_to_make_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(model_runner.CHOICE, "0")
    restore = model_runner.choose(None, "0.32.0")
    assert environment() == {model_runner.CHOICE: "0"}
    restore()
    assert environment() == {model_runner.CHOICE: "0"}


def test_v2_on_a_cpu_interprets_its_kernels_and_afterwards_all_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = model_runner.choose("v2", "0.32.0")
    assert environment() == {model_runner.CHOICE: "1", **interpreted.ENVIRONMENT}
    restore()
    assert environment() == {}
    monkeypatch.setenv(interpreted.SWITCH, "check")
    model_runner.choose("v2", "0.32.0")()
    assert environment() == {interpreted.SWITCH: "check"}


def test_v1_and_v2_on_a_gpu_set_vllms_own_switch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = model_runner.choose("v1", "0.32.0")
    assert environment() == {model_runner.CHOICE: "0"}
    restore()
    monkeypatch.setattr(model_runner, "device", lambda: "cuda")
    restore = model_runner.choose("v2", "0.29.0")
    assert environment() == {model_runner.CHOICE: "1"}
    restore()


def test_what_vllm_has_frozen_of_the_environment_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    thawed: list[bool] = []
    envs = SimpleNamespace(disable_envs_cache=lambda: thawed.append(True))
    monkeypatch.setitem(sys.modules, "vllm.envs", envs)  # type: ignore[arg-type]
    model_runner.choose("v1", "0.32.0")()
    assert thawed == [True]


@pytest.mark.parametrize(
    ("version", "error", "line"),
    [
        ("0.31.0", None, "--runner v2: vLLM 0.31.0 runs it on a GPU only"),
        ("0.32.0", ImportError("triton"), "--runner v2: on a CPU it takes the package triton"),
    ],
)
def test_where_v2_cannot_run_one_line_says_so_and_nothing_stays_set(
    monkeypatch: pytest.MonkeyPatch, version: str, error: Exception | None, line: str
) -> None:
    def prepare() -> None:
        if error:
            raise error

    monkeypatch.setattr(interpreted, "prepare", prepare)
    with pytest.raises(UserError, match=line):
        model_runner.choose("v2", version)
    assert environment() == {}


def test_without_triton_nothing_is_started_for_v2_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is told by its environment alone: it would end minutes later, with an error of its own."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--runner v2: on a CPU it takes the package triton"):
        model_runner.environment("v2", "0.32.0")
    model_runner.environment("v1", "0.32.0")
    monkeypatch.setattr(model_runner, "device", lambda: "cuda")
    model_runner.environment("v2", "0.32.0")


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_after_the_other_runner_an_engine_gets_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, runner: Literal["v1", "v2"]
) -> None:
    """vLLM has decided in this one whether there is Triton, and checks the configuration by that."""

    def prepare() -> None:
        raise RuntimeError("vLLM has started without Triton")

    config = SimpleNamespace(HAS_TRITON=runner == "v1")
    monkeypatch.setitem(sys.modules, "vllm.config.vllm", config)  # type: ignore[arg-type]
    backend = SimpleNamespace(installed=lambda: runner == "v1")
    monkeypatch.setitem(sys.modules, "vllm_patches.interpreted.backend", backend)  # type: ignore[arg-type]
    monkeypatch.setattr(interpreted, "prepare", prepare)
    restore = model_runner.choose(runner, "0.32.0")
    assert environment().items() >= model_runner.APART.items() and (runner == "v2") == config.HAS_TRITON
    restore()
    assert environment() == {} and (runner == "v1") == config.HAS_TRITON


def test_nor_is_v2_refused_where_triton_came_to_compile_before_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tokenizer, say: vLLM has decided nothing yet, and would decide that it has none."""

    def prepare() -> None:
        raise RuntimeError("Triton was imported to compile")

    config = SimpleNamespace(HAS_TRITON=False)
    monkeypatch.delitem(sys.modules, "vllm.config.vllm", raising=False)
    monkeypatch.setattr(importlib, "import_module", {"vllm.config.vllm": config}.get)
    monkeypatch.setattr(interpreted, "prepare", prepare)
    restore = model_runner.choose("v2", "0.32.0")
    assert environment().items() >= model_runner.APART.items() and config.HAS_TRITON
    restore()
    assert environment() == {} and not config.HAS_TRITON


def test_vllm_s_own_switch_on_a_cpu_is_answered_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(model_runner.CHOICE, "1")
    with pytest.raises(UserError, match="VLLM_USE_V2_MODEL_RUNNER=1: on a CPU the V2 runner is started by --runner v2"):
        model_runner.choose(None, "0.32.0")
    model_runner.choose("v2", "0.32.0")()
    monkeypatch.setattr(model_runner, "device", lambda: "cuda")
    model_runner.choose(None, "0.32.0")()
    assert environment() == {model_runner.CHOICE: "1"}
