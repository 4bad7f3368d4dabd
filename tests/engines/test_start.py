"""How an order becomes arguments of vLLM, and what is taken from the environment. Starts nothing."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support import records

from speceval.catalog import Draft, Target
from speceval.engines.base import Order
from speceval.engines.vllm import listing, start
from speceval.errors import UserError
from speceval.measure.fingerprint import environment
from speceval.measure.job import prepare
from speceval.store.schema import Facts
from vllm_patches import LEDGER, status
from vllm_patches.settings import KNOWN_ANSWER

VERSION = "0.32.0"
RATES = (0.9, 0.5, 0.1)


def draft(method: str, **fields: Any) -> Draft:
    return Draft(name="d", source="hub", model="a/d", method=method, **fields)


ORDER = Order("vllm", Target(name="t", source="hub", model="a/t"), draft("eagle3"), 3, "probabilistic", 1.0)


def test_vllm_s_own_proposers_are_told_how_to_draft() -> None:
    assert start.drafter_arguments(draft("medusa", revision="abc"), ORDER, VERSION) == {
        "speculative_config": {
            "method": "medusa",
            "model": "a/d",
            "revision": "abc",
            "num_speculative_tokens": 3,
            "draft_sample_method": "probabilistic",
        }
    }


@pytest.mark.parametrize(("method", "vllm"), [("medusa", "0.33.0"), ("mlp_speculator", "0.32.0")])
def test_drafters_without_a_proposer_in_vllm_are_ours(method: str, vllm: str) -> None:
    found = start.drafter_arguments(draft(method, revision="abc"), replace(ORDER, drafting="greedy"), vllm)
    assert found["additional_config"] == {"draft_checkpoint": "a/d@abc"}
    assert found["speculative_config"]["method"] == "custom_class"
    assert found["speculative_config"]["draft_sample_method"] == "greedy"


@pytest.mark.parametrize("method", ["medusa", "mlp_speculator"])
def test_on_the_v2_runner_heads_are_ours_in_every_version(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def transport(runner: Any) -> str:
        found = start.drafter_arguments(draft(method), replace(ORDER, runner=runner), VERSION)
        return str(found["speculative_config"]["method"])

    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    assert transport("v2") == "custom_class" and transport("v1") == transport(None)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert transport(None) == "custom_class"
    assert transport("v1") == ("medusa" if method == "medusa" else "custom_class")


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("ngram", {"prompt_lookup_max": 3, "prompt_lookup_min": 2}),
        ("eagle3", {"parallel_drafting": False, "quantization": "fp8"}),
        ("mlp_speculator", {"enforce_eager": True}),
    ],
)
def test_further_keys_reach_vllm_s_speculative_config_and_win_over_the_checkpoint_s(
    method: str, given: dict[str, Any]
) -> None:
    made = draft(method, engine_args={"parallel_drafting": True} if method == "eagle3" else {})
    drafting: Any = "deterministic" if method == "ngram" else "probabilistic"
    found = start.drafter_arguments(made, replace(ORDER, draft_args=given, drafting=drafting), VERSION)
    assert found["speculative_config"].items() >= given.items()


def test_another_rejection_method_is_passed_on() -> None:
    found = start.llm_arguments(replace(ORDER, rejection="block"), VERSION)
    assert found["speculative_config"]["rejection_sample_method"] == "block"


def test_forced_rates_open_the_engine_for_this_order_alone() -> None:
    forced = start.llm_arguments(replace(ORDER, rejection="synthetic", forced=RATES), VERSION)
    assert forced["speculative_config"]["rejection_sample_method"] == "synthetic"
    assert forced["speculative_config"]["synthetic_acceptance_rates"] == list(RATES)
    assert forced["additional_config"][KNOWN_ANSWER] is True
    assert KNOWN_ANSWER not in start.llm_arguments(ORDER, VERSION)["additional_config"]


def test_the_target_alone_is_started_without_a_drafter() -> None:
    found = start.llm_arguments(replace(ORDER, forced=RATES).alone(), VERSION)
    assert found["speculative_config"] is None and "per_request_spec_decode_metrics" not in found
    assert KNOWN_ANSWER not in found["additional_config"] and found["model"] == "a/t"


@pytest.mark.parametrize("truncation", [True, False])
@pytest.mark.parametrize("method", ["eagle3", "mlp_speculator"])
def test_draft_truncation_travels_in_the_engine_s_own_configuration(method: str, truncation: bool) -> None:
    """An environment variable would reach this process only."""
    before = dict(os.environ)
    found = start.llm_arguments(replace(ORDER, draft=draft(method), draft_truncation=truncation), VERSION)
    assert found["additional_config"]["draft_truncation"] is truncation
    assert ("draft_checkpoint" in found["additional_config"]) == (method == "mlp_speculator")
    assert dict(os.environ) == before


def test_a_user_s_additional_config_is_kept_beside_ours_and_never_wins() -> None:
    ours: dict[str, Any] = {"model": "m", "additional_config": {"draft_truncation": True}}
    joined = start.joined(ours, {"dtype": "float32", "additional_config": {"other": 1}})
    assert joined == {
        "model": "m",
        "dtype": "float32",
        "additional_config": {"other": 1, "draft_truncation": True},
    }
    for users, says in (
        ({"model": "n"}, "--engine-arg model"),
        ({"additional_config": {"draft_truncation": False}}, "--engine-arg additional_config: draft_truncation"),
        ({"additional_config": "text"}, "must be an object"),
        ({"chat_template": "x"}, "chat_template: would have no effect: "),
        ({"override_generation_config": {}}, "override_generation_config: would have no effect: .*--temp"),
        ({"max_model_lenn": 3}, r"max_model_lenn: vLLM's engine has no such argument; did you mean max_model_len"),
    ):
        with pytest.raises(UserError, match=says):
            start.joined(ours, users)
    with pytest.raises(UserError, match="chat_template: would have no effect"):  # before anything is fetched
        prepare(
            target="zoo", draft="lk-eagle3", temperature=1, suite_names=["demo"], engine_args={"chat_template": "x"}
        )


def test_ray_s_workers_are_given_the_switches_of_the_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_env = pytest.importorskip("vllm.ray.ray_env")
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # put back afterwards, whatever is set meanwhile
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    monkeypatch.setenv("SPECEVAL_PATCHES_SKIP", "cpu-expand")
    monkeypatch.setenv(start.RAY_PREFIXES, "MINE_")
    assert "SPECEVAL_PATCHES_SKIP" not in ray_env.get_env_vars_to_copy()
    start.set_environment(ORDER.target, {})
    start.set_environment(ORDER.target, {})
    assert os.environ[start.RAY_PREFIXES] == "MINE_,SPECEVAL_"
    assert "SPECEVAL_PATCHES_SKIP" in ray_env.get_env_vars_to_copy()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment without what is set for engines; what a test sets is taken back."""
    names = {*start.ZOO_ENVIRONMENT, "GOMP_SPINCOUNT", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL"}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    monkeypatch.setattr(os, "environ", kept)
    monkeypatch.setattr(start, "_SET", {})
    monkeypatch.setattr(start, "on_cpu", lambda: True)
    monkeypatch.setattr(start.room, "cores", lambda: 8)
    monkeypatch.setattr(start.room, "free_gibibytes", lambda: 21)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return kept


ZOO = Target(name="zoo", source="zoo", model="zoo")


def test_a_real_target_after_the_zoo_in_one_process_gets_its_own_threads_and_memory(bare: dict[str, str]) -> None:
    start.set_environment(ZOO, {})
    assert (bare["OMP_NUM_THREADS"], bare["VLLM_CPU_KVCACHE_SPACE"]) == ("1", "1")
    start.set_environment(ORDER.target, {})
    assert (bare["OMP_NUM_THREADS"], bare["VLLM_CPU_KVCACHE_SPACE"]) == ("8", "5")
    bare["OMP_NUM_THREADS"] = "3"
    start.set_environment(ZOO, {})
    assert bare["OMP_NUM_THREADS"] == "3", "a user's own"


def test_what_an_engine_took_from_the_environment_is_on_the_record(bare: dict[str, str]) -> None:
    assert environment("vllm").variables == {}
    start.set_environment(ORDER.target, {})
    taken = environment("vllm").variables
    assert (taken["OMP_NUM_THREADS"], taken["VLLM_CPU_KVCACHE_SPACE"], taken["GOMP_SPINCOUNT"]) == ("8", "5", "20000")
    assert environment("simulated").variables == {}
    assert "variables" not in environment("simulated").model_dump(), "as runs from before there were any"


def test_an_argument_that_sizes_the_cache_is_not_overruled_by_the_environment(bare: dict[str, str]) -> None:
    start.set_environment(ORDER.target, {})
    start.set_environment(ORDER.target, {"kv_cache_memory_bytes": 1 << 30})
    assert "VLLM_CPU_KVCACHE_SPACE" not in bare and bare["OMP_NUM_THREADS"] == "8"
    assert "VLLM_CPU_KVCACHE_SPACE" not in start.environment(ORDER.target, {"gpu_memory_utilization": 0.3})


def test_workers_share_the_cores(bare: dict[str, str]) -> None:
    assert start.environment(ORDER.target, {"tensor_parallel_size": 4})["OMP_NUM_THREADS"] == "2"
    assert start.environment(ORDER.target, {"tensor_parallel_size": 16})["OMP_NUM_THREADS"] == "1"


def test_a_torch_that_was_loaded_before_gets_the_threads_too(
    bare: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(_C=SimpleNamespace(set_num_threads=told.append)))
    start.set_environment(ORDER.target, {})
    assert told == [8]


def test_a_run_s_record_knows_which_patches_come_with_the_drafting_method() -> None:
    bound = {state.id for state in map(listing.as_state, status()) if state.bound}
    assert bound == {patch.id for patch in LEDGER if patch.methods} >= {"v1-medusa", "cpu-rotary"}


def test_patches_are_asked_for_by_vllm_s_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`v1-medusa` mends vLLM's proposer, which 0.33 and V2 have not: there a class of ours drafts."""
    asked: list[Any] = []
    monkeypatch.setattr("vllm_patches.missing", lambda rows, **run: asked.append(run["method"]) or [])
    for version, runner in (("0.32.0", "V1"), ("0.33.0", "V1"), ("0.32.0", "V2")):
        facts = Facts(**records.FACTS | {"method": "medusa", "vllm": version, "runner": runner})
        assert start.missing_patches([], facts, temperature=1.0) == []
    assert asked == ["medusa", "custom_class", "custom_class"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_patch_that_is_off_is_missing_where_it_is_needed(temperature: float) -> None:
    rows = [
        state.model_copy(update={"state": "switched off" if state.id == "cpu-expand" else "active", "reason": "off"})
        for state in map(listing.as_state, status())
    ]
    found = start.missing_patches(rows, Facts(**records.FACTS), temperature)
    assert found == (["cpu-expand: switched off (off)"] if temperature else [])


def test_a_missing_vllm_is_said_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^vLLM is not installed: pip install .* `make setup` in a checkout"):
        start.require_vllm()


@pytest.mark.parametrize(
    ("tokens", "compiler", "eager"),
    [(0, True, True), (start.COMPILED_FROM - 1, True, True), (start.COMPILED_FROM, True, False), (10**6, False, True)],
)
def test_a_real_target_on_a_cpu_is_compiled_where_the_run_earns_it_back_and_a_compiler_is_there(
    bare: dict[str, str], monkeypatch: pytest.MonkeyPatch, tokens: int, compiler: bool, eager: bool
) -> None:
    monkeypatch.setattr(start.shutil, "which", lambda name: f"/usr/bin/{name}" if compiler else None)
    monkeypatch.setattr(start.Path, "is_file", lambda path: path.name == "Python.h")
    assert start.default_arguments(ORDER.target, tokens) == ({"enforce_eager": True} if eager else {})
    assert start.default_arguments(ZOO, tokens)["enforce_eager"] is True
    monkeypatch.setattr(start, "on_cpu", lambda: False)
    assert start.default_arguments(ORDER.target, tokens) == {}


@pytest.mark.parametrize(
    ("method", "cpu", "refused"), [("eagle3", True, True), ("eagle3", False, False), ("ngram", True, False)]
)
def test_a_pipeline_of_workers_on_a_cpu_is_refused_for_drafters_that_are_models(
    monkeypatch: pytest.MonkeyPatch, method: str, cpu: bool, refused: bool
) -> None:
    monkeypatch.setattr(start, "on_cpu", lambda: cpu)
    order = replace(ORDER, draft=draft(method), engine_args={"pipeline_parallel_size": 2})
    with pytest.raises(UserError, match="pipeline_parallel_size=2: on a CPU") if refused else nullcontext():
        start.llm_arguments(order, VERSION)
