"""What is compared between the question and the engine, and what a job asks of its engine."""

from pathlib import Path
from typing import Any

import pytest
from support import records

from speceval import catalog
from speceval.errors import UserError
from speceval.measure import launch, record
from speceval.measure.job import Job, prepare
from speceval.measure.output import output_to, unwatched
from speceval.measure.start import check_settings, order
from speceval.protocol import LOSSLESS, RunSpec
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
        ({}, {"engine_args": {"async_scheduling": True}}, "resolved async_scheduling to False, asked for True"),
        ({"enforce_eager": True}, {"engine_args": {"enforce_eager": False}}, "resolved enforce_eager to True"),
    ],
)
def test_a_setting_that_vllm_changed_stops_the_run(facts: dict[str, Any], spec: dict[str, Any], says: str) -> None:
    check_settings(FACTS, SPEC)
    with pytest.raises(UserError, match=says):
        check_settings(FACTS.model_copy(update=facts), SPEC.model_copy(update=spec))


def test_truncation_of_drafts_matters_only_where_something_is_truncated() -> None:
    check_settings(FACTS.model_copy(update={"draft_truncation": False}), SPEC)


@pytest.mark.parametrize("method", ["synthetic", "fly"])
def test_a_rejection_method_that_is_not_lossless_is_refused_before_anything_starts(method: str) -> None:
    with pytest.raises(
        UserError, match=f"^--rejection {method}: is not lossless, nothing to measure: use {' or '.join(LOSSLESS)}$"
    ):
        prepare(target="zoo", draft="lk-eagle3", temperature=1, suite_names=["demo"], k=3, rejection=method)


def job(**changes: Any) -> Job:
    target = catalog.Target(name="t", source="hub", model="a/t")
    draft = catalog.Draft(name="d", source="hub", model="a/d", method="eagle3")
    return Job(SPEC.model_copy(update=changes), target, draft, [], Path("run"))


@pytest.mark.parametrize(
    ("changes", "records"),
    [
        ({}, True),
        ({"record": False}, False),
        ({"temperature": 0, "drafting": "greedy"}, False),
        ({"rejection": "block"}, False),
    ],
)
def test_r_and_alpha_are_recorded_where_drafts_are_accepted_by_them(changes: dict[str, Any], records: bool) -> None:
    assert order(job(**changes)).record is records


def test_the_target_alone_is_asked_for_nothing_that_needs_a_drafter() -> None:
    alone = order(job(top_k=8, batch=3)).alone()
    assert alone.draft is None and alone.k == 0 and not alone.record and not alone.replay and alone.forced is None
    assert (alone.top_k, alone.batch, alone.target) == (8, 3, job().target)


def test_what_an_engine_has_no_setting_for_is_not_held_against_it() -> None:
    check_settings(FACTS.model_copy(update={"generation_config": None}), SPEC)
    with pytest.raises(UserError, match="resolved generation_config to 'auto'"):
        check_settings(FACTS.model_copy(update={"generation_config": "auto"}), SPEC)


@pytest.mark.parametrize(("cause", "left"), [(None, []), (ValueError("broken"), ["run", "run/engine.log"])])
def test_a_refused_run_leaves_nothing_and_an_engine_that_failed_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception | None, left: list[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("no") from cause

    monkeypatch.setattr(record, "opened", refuse)
    asked = prepare(
        target="zoo", draft="kl-eagle3", temperature=1, suite_names=["demo"], k=3, engine="simulated",
        out=tmp_path / "run",
    )  # fmt: skip
    with pytest.raises(UserError, match="no"):
        launch.run(asked, unwatched, output_to)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == left
