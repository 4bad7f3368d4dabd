"""`--runner`: what it puts into the environment before vLLM starts, what it takes back, and what it refuses."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from speceval.engines.vllm import model_runner
from speceval.errors import UserError
from vllm_patches import interpreted

NAMES = (model_runner.CHOICE, *interpreted.ENVIRONMENT)


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
        ("0.32.0", RuntimeError("vLLM has started without Triton"), "--runner v2: vLLM has started without Triton"),
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


def test_v1_does_not_start_where_triton_was_made_to_interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would take its Triton paths there, which V1 on a CPU never does."""
    backend = SimpleNamespace(installed=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm_patches.interpreted.backend", backend)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="V1 takes a process of its own"):
        model_runner.choose("v1", "0.32.0")
