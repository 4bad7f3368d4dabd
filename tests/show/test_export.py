"""Exports: what others read back is what the run says, and nothing unsound leaves."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from pydantic import ValidationError
from typer.testing import CliRunner

from speceval.cli import app
from speceval.errors import UserError
from speceval.estimate import acceptance
from speceval.show.export import FORMATS, export
from speceval.show.export.card import card_data
from speceval.show.export.lm_eval import lm_eval_results
from speceval.show.export.names import public
from speceval.show.export.profile import Profile, profile
from speceval.show.tables import suite_summary
from speceval.store import StoredRun

sys.path.insert(0, str(Path(__file__).parent / "report"))
from support.records import altered
from support.report_runs import write_run

HOSTILE = "<b>|x|`y`\n---\ntags: [z]\n\x1b[31m{{ 7 }} # \u202e"


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    return write_run(tmp_path / "run", suites=("gsm8k", "demo"), conversations=8, seeds=2, k=4)


def strict(text: str) -> Any:
    """JSON without NaN and infinity."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_says_every_tau_of_every_suite_as_the_hub_reads_it(run: StoredRun) -> None:
    text = export(run, "model-card")
    name, results = model_index_to_eval_results(front(text)["model-index"])
    assert name == "lk-eagle3" and results == card_data(run).eval_results
    assert ModelCard(text).data.eval_results == results
    told = {(one.dataset_name, one.metric_args["definition"]): one for one in results}
    for suite in run.suites:
        summary = suite_summary(run, suite)
        for tau in ("tau", "tau_committed", "tau_paper", "tau_request_mean"):
            one = told[suite, tau]
            assert one.metric_value == round(summary[tau]["value"], 4)
            assert one.metric_args["interval_95"] == [round(summary[tau][end], 4) for end in ("low", "high")]
            assert one.metric_args["num_speculative_tokens"] == 4
    assert ("gsm8k", "tau_rb") not in told  # nothing was recorded


def test_the_card_names_the_dataset_protocol_command_versions_and_weights(run: StoredRun) -> None:
    text = export(run, "model-card")
    assert front(text)["datasets"] == ["openai/gsm8k"] and "base_model" not in front(text)
    assert {r["dataset"]["type"] for r in front(text)["model-index"][0]["results"]} == {"openai/gsm8k", "demo"}
    for needed in (
        "speceval run --target zoo --draft lk-eagle3 --temp 1",
        "weights of lk-eagle3",
        "0.32.0",
        "cpu-expand",
    ):
        assert needed in text


def test_a_hub_target_is_the_base_model(run: StoredRun) -> None:
    changed = altered(run, fingerprint__target__model="org/target")
    assert card_data(changed).base_model == "org/target"


def test_hostile_names_break_neither_front_matter_nor_tables(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", suites=(HOSTILE,), draft=HOSTILE, meta={"command": ["speceval", "```", HOSTILE]})
    text = export(run, "model-card")
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert set(yaml.safe_load(head)) == {"library_name", "tags", "model-index"}
    assert "\x1b" not in text and "\u202e" not in text and "<b>" not in body.replace("'<b>", "").replace(r"\<b\>", "")
    assert "````" in body
    for kind in ("speculation-profile", "lm-eval-style-json"):
        assert export(run, kind).isascii() and "\x1b" not in export(run, kind) and strict(export(run, kind))


def test_the_profile_follows_from_a_known_histogram(run: StoredRun) -> None:
    """100 steps at K=3: 40 accept nothing, 30 accept one, 30 accept two."""
    steps = run.steps.iloc[:100].assign(drafted=3, accepted=[0] * 40 + [1] * 30 + [2] * 30)
    found = profile(altered(replace(run, steps=steps), spec__k=3))
    assert found.marginal_accept_rates == [0.6, 0.3, 0.0]
    assert found.conditional_accept_rates == [0.6, 0.5, 0.0]
    assert found.mean_accept_length == 1.9
    assert found.acceptance_length_histogram == {"1": 40, "2": 30, "3": 30}
    assert found.validation and found.validation.mean_consistency.abs_delta == 0


def test_the_profile_agrees_with_the_runs_own_estimators(run: StoredRun) -> None:
    found = strict(export(run, "speculation-profile"))
    assert found["mean_accept_length"] == pytest.approx(acceptance.tau(run.steps), abs=1e-6)
    assert found["mean_accept_length_per_request"] == pytest.approx(acceptance.tau_request_mean(run.turns), abs=1e-6)
    positions = acceptance.positions(run.steps, 4)
    assert found["marginal_accept_rates"] == pytest.approx(list(positions["unconditional"]), abs=1e-6)
    assert found["conditional_accept_rates"] == pytest.approx(list(positions["conditional"]), abs=1e-6)
    assert set(found["per_category"]) == {"gsm8k/math", "demo/math"}
    assert found["measurement_conditions"]["num_samples"] == 32
    assert Profile.model_validate(found).num_speculative_tokens == 4


def test_steps_without_drafts_are_not_in_the_profile(run: StoredRun) -> None:
    steps = run.steps.copy()
    steps.loc[steps.index[:50], ["drafted", "accepted"]] = 0
    found = profile(replace(run, steps=steps))
    assert sum(found.acceptance_length_histogram.values()) == len(steps) - 50


def test_short_drafts_leave_a_survival_function_whose_sum_is_the_mean(run: StoredRun) -> None:
    steps = run.steps.assign(drafted=[1, 4] * (len(run.steps) // 2))
    steps["accepted"] = steps["accepted"].clip(upper=steps["drafted"])
    found = profile(replace(run, steps=steps))
    assert found.validation and found.validation.mean_consistency.abs_delta < 1e-5
    assert found.marginal_accept_rates == sorted(found.marginal_accept_rates or [], reverse=True)


@pytest.mark.parametrize(("method", "model"), [("eagle3", "chain_analytic"), ("dflash", "measured_per_k")])
def test_only_chain_drafters_promise_other_k(run: StoredRun, method: str, model: str) -> None:
    assert profile(altered(run, fingerprint__engine__method=method)).accept_length_model == model


def test_block_verification_withholds_the_rates(run: StoredRun) -> None:
    found = profile(altered(run, fingerprint__engine__rejection_sample_method="block"))
    assert found.marginal_accept_rates is found.conditional_accept_rates is found.validation is None
    assert "longest-prefix" in (found.vectors_unavailable_reason or "") and found.acceptance_length_histogram


@pytest.mark.parametrize(
    "change",
    [
        {"marginal_accept_rates": [0.5, 1.5, 0.1, 0.1]},
        {"marginal_accept_rates": [0.5]},
        {"marginal_accept_rates": None},
        {"mean_accept_length": math.nan},
        {"accept_rate": 0.5},
        {"schema_version": "2.0"},
    ],
)
def test_the_schema_refuses_what_consumers_would_trip_over(run: StoredRun, change: dict[str, Any]) -> None:
    good = profile(run).model_dump()
    Profile.model_validate(good)
    with pytest.raises(ValidationError):
        Profile.model_validate(good | change)


def test_lm_eval_results_have_its_shape_and_the_runs_numbers(run: StoredRun) -> None:
    found = strict(export(run, "lm-eval-style-json"))
    assert {"results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "config", "git_hash", "date",
            "group_subtasks", "model_name", "model_source", "total_evaluation_time_seconds"} <= set(found)  # fmt: skip
    for name in ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "group_subtasks"):
        assert set(found[name]) == {"gsm8k", "demo"}
    tau = suite_summary(run, "gsm8k")["tau"]
    assert found["results"]["gsm8k"]["tau,none"] == tau["value"]
    assert found["results"]["gsm8k"]["tau_stderr,none"] == tau["se"]
    assert found["n-samples"]["gsm8k"] == {"original": 8, "effective": 8}
    metrics = found["results"]["gsm8k"].keys() - {"alias"}
    assert all(name.endswith(",none") for name in metrics)
    assert all(name.replace(",", "_stderr,") in metrics for name in metrics if "_stderr" not in name)


def test_errors_that_one_conversation_does_not_give_are_called_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", conversations=1, seeds=1)
    assert lm_eval_results(run)["results"]["demo"]["tau_stderr,none"] == "N/A"
    card = ModelCard(export(run, "model-card")).data
    assert {one.metric_args["interval_95"] for one in card.eval_results} == {"unknown"}
    assert strict(export(run, "speculation-profile"))["measured"] is True


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("accept", [0.0, 1.0])
def test_extreme_acceptance_is_exported_without_nan(tmp_path: Path, kind: str, accept: float) -> None:
    text = export(write_run(tmp_path / "run", accept=accept, k=1), kind)
    assert "NaN" not in text and "nan" not in text and "Infinity" not in text


@pytest.mark.parametrize("kind", FORMATS)
def test_unsound_runs_are_not_exported(run: StoredRun, kind: str) -> None:
    for change, line in (
        ({"status": "running"}, "is unfinished"),
        ({"problems": ["x"]}, "do not balance"),
        ({"spec__replay": "0" * 16}, "is a replay"),
        ({"spec__rejection": "synthetic"}, "forced its acceptance"),
    ):
        with pytest.raises(UserError, match=line):
            export(altered(run, **change), kind)
    with pytest.raises(UserError, match="measured nothing"):
        export(replace(run, steps=run.steps.assign(drafted=0, accepted=0)), kind)


def test_names_are_published_without_the_machines_folders() -> None:
    assert public("/home/me/models/org/model") == "org/model" and public("./drafter") == "drafter"
    assert public("org/model") == "org/model" and public("lk-eagle3") == "lk-eagle3"


@pytest.mark.parametrize("kind", FORMATS)
def test_the_command_prints_or_writes_the_same(run: StoredRun, tmp_path: Path, kind: str) -> None:
    printed = CliRunner().invoke(app, ["export", str(run.directory), "--as", kind])
    assert printed.exit_code == 0 and printed.stdout == export(run, kind)
    written = CliRunner().invoke(app, ["export", str(run.directory), "--as", kind, "-o", str(tmp_path / "x")])
    assert written.exit_code == 0 and written.stdout == ""
    assert (tmp_path / "x").read_text(encoding="utf-8") == printed.stdout
