"""What is compared between the question and the engine, and how a drafter is named to vLLM."""

import os
from pathlib import Path
from typing import Any

import pytest
from support import records

from speceval import catalog
from speceval.errors import UserError
from speceval.measure.job import Job, prepare
from speceval.measure.start import check_settings, drafter_arguments, start_engine
from speceval.protocol import RunSpec
from speceval.store.schema import Facts

SPEC = RunSpec(target="t", draft="d", k=3, temperature=1, drafting="probabilistic", suites=("demo",))
FACTS = Facts(**records.FACTS)


@pytest.mark.parametrize(
    ("facts", "spec", "says"),
    [
        ({"k": 2}, {}, "resolved k to 2, asked for 3"),
        ({"draft_sample_method": "greedy"}, {}, "resolved draft_sample_method to 'greedy'"),
        ({}, {"drafting": "greedy"}, "resolved draft_sample_method to 'probabilistic'"),
        ({}, {"rejection": "block"}, "resolved rejection_sample_method to 'standard', asked for 'block'"),
        ({"draft_truncation": False}, {"top_k": 8}, "resolved draft_truncation to False, asked for True"),
        ({}, {"top_p": 0.9, "draft_truncation": False}, "resolved draft_truncation to True, asked for False"),
    ],
)
def test_a_setting_that_vllm_changed_stops_the_run(facts: dict[str, Any], spec: dict[str, Any], says: str) -> None:
    check_settings(FACTS, SPEC)
    with pytest.raises(UserError, match=says):
        check_settings(FACTS.model_copy(update=facts), SPEC.model_copy(update=spec))


def test_truncation_of_drafts_matters_only_where_something_is_truncated() -> None:
    check_settings(FACTS.model_copy(update={"draft_truncation": False}), SPEC)


def draft(method: str, **fields: Any) -> catalog.Draft:
    return catalog.Draft(name="d", source="hub", model="a/d", method=method, **fields)  # type: ignore[arg-type]


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr("speceval.measure.start.require_vllm", lambda: "0.32.0")
    return monkeypatch


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("ngram", {"prompt_lookup_max": 3, "prompt_lookup_min": 2}),
        ("eagle3", {"parallel_drafting": False, "quantization": "fp8"}),
        ("mlp_speculator", {"enforce_eager": True}),
    ],
)
def test_further_keys_reach_vllm_s_speculative_config_and_win_over_the_checkpoint_s(
    version: pytest.MonkeyPatch, method: str, given: dict[str, Any]
) -> None:
    made = draft(method, engine_args={"parallel_drafting": True} if method == "eagle3" else {})
    drafting = "deterministic" if method == "ngram" else "probabilistic"
    found = drafter_arguments(made, SPEC.model_copy(update={"draft_args": given, "drafting": drafting}))
    assert found["speculative_config"].items() >= given.items()


def test_vllm_s_own_proposers_are_told_how_to_draft(version: pytest.MonkeyPatch) -> None:
    found = drafter_arguments(draft("medusa", revision="abc"), SPEC)
    assert found == {
        "speculative_config": {
            "method": "medusa",
            "model": "a/d",
            "revision": "abc",
            "num_speculative_tokens": 3,
            "draft_sample_method": "probabilistic",
        }
    }


@pytest.mark.parametrize(("method", "vllm"), [("medusa", "0.33.0"), ("mlp_speculator", "0.32.0")])
def test_drafters_without_a_proposer_in_vllm_are_ours(version: pytest.MonkeyPatch, method: str, vllm: str) -> None:
    version.setattr("speceval.measure.start.require_vllm", lambda: vllm)
    found = drafter_arguments(draft(method, revision="abc"), SPEC.model_copy(update={"drafting": "greedy"}))
    assert found["additional_config"] == {"draft_checkpoint": "a/d@abc"}
    assert found["speculative_config"]["method"] == "custom_class"
    assert found["speculative_config"]["draft_sample_method"] == "greedy"


def test_another_rejection_method_is_passed_on(version: pytest.MonkeyPatch) -> None:
    found = drafter_arguments(draft("eagle3"), SPEC.model_copy(update={"rejection": "block"}))
    assert found["speculative_config"]["rejection_sample_method"] == "block"


@pytest.mark.parametrize("method", ["synthetic", "fly"])
def test_a_rejection_method_that_is_not_lossless_is_refused_before_anything_starts(method: str) -> None:
    with pytest.raises(UserError, match=f"--rejection {method}: .*not lossless|lossy by design"):
        prepare(target="zoo", draft="lk-eagle3", temperature=1, suite_names=["demo"], k=3, rejection=method)


@pytest.mark.parametrize(
    ("changes", "records"),
    [
        ({}, True),
        ({"record": False}, False),
        ({"temperature": 0, "drafting": "greedy"}, False),
        ({"rejection": "block"}, False),
    ],
)
def test_r_and_alpha_are_recorded_where_drafts_are_accepted_by_them(
    version: pytest.MonkeyPatch, changes: dict[str, Any], records: bool
) -> None:
    asked: dict[str, Any] = {}
    version.setattr("speceval.measure.start.OfflineEngine", lambda **arguments: asked.update(arguments))
    target = catalog.Target(name="t", source="hub", model="a/t")  # type: ignore[call-arg]
    start_engine(Job(SPEC.model_copy(update=changes), target, draft("eagle3"), [], Path("run")))
    assert asked["record"] is records


@pytest.mark.parametrize("truncation", [True, False])
@pytest.mark.parametrize("method", ["eagle3", "mlp_speculator"])
def test_draft_truncation_travels_in_the_engine_s_own_configuration(
    version: pytest.MonkeyPatch, method: str, truncation: bool
) -> None:
    """An environment variable would reach this process only."""
    asked: dict[str, Any] = {}
    before = dict(os.environ)
    version.setattr("speceval.measure.start.OfflineEngine", lambda **arguments: asked.update(arguments))
    target = catalog.Target(name="t", source="hub", model="a/t")  # type: ignore[call-arg]
    spec = SPEC.model_copy(update={"draft_truncation": truncation})
    start_engine(Job(spec, target, draft(method), [], Path("run")))
    assert asked["additional"]["draft_truncation"] is truncation
    assert ("draft_checkpoint" in asked["additional"]) == (method == "mlp_speculator")
    assert dict(os.environ) == before
