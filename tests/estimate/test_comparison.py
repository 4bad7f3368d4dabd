"""Comparing runs: which protocols may differ, and what the table says."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from support.records import SUITE_FACTS, altered, run_meta
from support.table_runs import write_run

from speceval.cli import main
from speceval.errors import NotComparable, UserError
from speceval.estimate import acceptance
from speceval.estimate.comparison import common_suites, compare_runs, require_comparable, shorten
from speceval.estimate.statistics import holm
from speceval.show.comparison import comparison_tables
from speceval.store import StoredRun, read_run, recorded_columns
from speceval.store.schema import Fingerprint


def meta(**changes: Any) -> Fingerprint:
    """A fingerprint; `changes` are dotted names with "__" for the dot."""
    given = {
        "suites": suites("chat"),
        "drafting": "probabilistic",
        "seeds": [0, 1, 2],
        "engine__k": 7,
        "patches": ["cpu-expand", "v1-missing-q"],
        **changes,
    }
    return run_meta(**{f"fingerprint__{name}": value for name, value in given.items()}).fingerprint


def suites(*names: str) -> dict[str, Any]:
    return {name: SUITE_FACTS | {"dataset": name, "conversations": 80} for name in names}


def test_runs_that_differ_in_the_drafter_alone_are_comparable() -> None:
    other = meta(
        draft={"name": "e", "model": "e", "revision": "main", "weights": None},
        engine__method="medusa",
        engine__max_model_len=2048,
        patches=["cpu-expand", "of-another-method", "v1-missing-q"],
        method_patches=["of-another-method"],
    )
    assert require_comparable([meta(), other]) == []


def test_a_run_on_another_model_runner_is_let_through_by_one_flag_and_its_patches_with_it() -> None:
    v1 = meta(engine__runner="V1", engine__draft_truncation=True)
    v2 = meta(engine__runner="V2", engine__draft_truncation=False, patches=["v2-draft-truncation"])
    with pytest.raises(NotComparable) as caught:
        require_comparable([v1, v2])
    assert str(caught.value).endswith("let it through with --allow engine.runner")
    lines = require_comparable([v1, v2], ["engine.runner"])
    assert [line.partition(":")[0] for line in lines] == ["engine.runner", "patches"]


def test_whether_drafts_are_truncated_matters_where_something_truncates_and_nowhere_else() -> None:
    plain = [meta(engine__draft_truncation=truncated) for truncated in (True, False)]
    assert require_comparable(plain) == []
    cut = [meta(sampling__top_k=8, engine__draft_truncation=truncated) for truncated in (True, False)]
    with pytest.raises(NotComparable, match=r"engine\.draft_truncation"):
        require_comparable(cut)


def test_every_other_field_is_refused_and_all_are_named_with_both_values_and_the_flag() -> None:
    other = meta(sampling__temperature=0.7, seeds=[0, 1, 2, 5], target__weights="sha256:9", prompts="c" * 64)
    with pytest.raises(NotComparable) as caught:
        require_comparable([meta(), other])
    message = str(caught.value)
    assert "sampling.temperature: 1.0 -> 0.7" in message
    assert "seeds: 0-2 (3) -> 0-2,5 (4)" in message
    assert "target.weights: a1 -> sha256:9" in message
    assert "prompts: 111111111111… -> cccccccccccc…" in message
    assert message.endswith("--allow prompts --allow sampling.temperature --allow seeds --allow target.weights")


@pytest.mark.parametrize("allowed", ["sampling.temperature", "sampling"])
def test_an_allowed_field_passes_by_its_name_or_a_prefix_and_is_told(allowed: str) -> None:
    other = meta(sampling__temperature=0.7)
    assert require_comparable([meta(), other], allow=[allowed]) == ["sampling.temperature: 1.0 -> 0.7"]


def test_allowing_one_field_does_not_let_another_through() -> None:
    other = meta(sampling__temperature=0.7, sampling__top_p=0.9)
    with pytest.raises(NotComparable, match=r"drafter: sampling\.top_p: 1\.0 -> 0\.9: measure"):
        require_comparable([meta(), other], allow=["sampling.temperature"])


def test_a_name_that_only_begins_alike_is_no_prefix() -> None:
    """`draft` is free to differ, `drafting` is not."""
    with pytest.raises(NotComparable, match="drafting: probabilistic -> greedy"):
        require_comparable([meta(), meta(drafting="greedy")])


def test_the_drafting_mode_is_allowed_in_one_word() -> None:
    other = meta(drafting="greedy", engine__draft_sample_method="greedy")
    assert len(require_comparable([meta(), other], allow=["drafting"])) == 2


def test_patches_that_every_method_needs_are_refused_and_only_the_difference_is_shown() -> None:
    with pytest.raises(NotComparable, match="patches: -v1-missing-q: measure"):
        require_comparable([meta(), meta(patches=["cpu-expand"])])


def test_template_arguments_given_in_one_run_only_are_refused() -> None:
    other = meta(chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(NotComparable, match=r"drafter: chat_template_kwargs\.enable_thinking: absent -> False: m"):
        require_comparable([meta(), other])


def test_of_several_runs_the_line_says_which_one_differs() -> None:
    with pytest.raises(NotComparable, match=r"engine\.k: 7 -> 5 \(run 3\)"):
        require_comparable([meta(), meta(), meta(engine__k=5)])


def test_ignored_fields_are_passed_over_in_silence() -> None:
    assert require_comparable([meta(), meta(seeds=[7])], ignore=["seeds"]) == []


def test_a_name_that_is_no_field_is_bad_input() -> None:
    with pytest.raises(UserError, match="--allow temprature: no such field") as caught:
        require_comparable([meta(), meta()], allow=["temprature"])
    assert not isinstance(caught.value, NotComparable)


def test_suites_of_one_run_only_are_left_out_and_told_and_do_not_count_as_differences() -> None:
    a = meta(suites=suites("chat", "code"), prompts="1" * 64)
    b = meta(suites=suites("chat"), prompts="2" * 64)
    for pair in ([a, b], [b, a]):
        assert require_comparable(pair) == ["suites left out, not in all runs: code"]
        assert common_suites(pair) == ["chat"]


def test_a_common_suite_with_another_dataset_is_refused() -> None:
    other = meta(suites__chat__dataset="d" * 64)
    with pytest.raises(NotComparable, match=r"suites\.chat\.dataset"):
        require_comparable([meta(), other])


def test_runs_without_a_common_suite_cannot_be_allowed() -> None:
    with pytest.raises(NotComparable, match=r"no suite in common: chat \| code"):
        require_comparable([meta(), meta(suites=suites("code"))], allow=["suites", "prompts"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (list(range(100)), "0-99 (100)"),
        ([3, 1, 2, 9], "1-3,9 (4)"),
        ([5], "[5]"),
        ("0123456789abcdef" * 4, "0123456789ab…"),
        (True, "True"),
    ],
)
def test_long_values_are_shortened(value: Any, text: str) -> None:
    assert shorten(value) == text


def stored(
    directory: Path, rates: dict[str, float], seed: int, conversations: int = 30, k: int = 3, **meta: Any
) -> StoredRun:
    """A run with these acceptance rates by suite; the prompts are as hard in every run."""
    hardness = np.random.default_rng(0).normal(0, 0.1, (conversations, 1, 1))
    rng = np.random.default_rng(seed)
    accepted = {
        suite: (rng.random((conversations, 20, k)) < rate + hardness).cumprod(axis=2).sum(axis=2)
        for suite, rate in rates.items()
    }
    return read_run(write_run(directory, accepted, k=k, draft=directory.name, **meta))


def with_record(run: StoredRun, chance: float) -> StoredRun:
    """The run as if every draft had been accepted with this known chance."""
    k = run.meta.spec.k
    recorded = pd.DataFrame(chance, index=run.steps.index, columns=recorded_columns(k))
    return replace(run, steps=pd.concat([run.steps, recorded], axis=1))


class TestCompareRuns:
    def test_every_suite_and_run_is_compared_with_the_first_run(self, tmp_path: Path) -> None:
        a, b, c = (
            stored(tmp_path / name, {"chat": rate, "code": rate + 0.1}, seed)
            for seed, (name, rate) in enumerate({"a": 0.5, "b": 0.51, "c": 0.6}.items())
        )
        rows = compare_runs([a, b, c])["comparisons"]
        assert [(row["suite"], row["run"]) for row in rows] == [("chat", 2), ("chat", 3), ("code", 2), ("code", 3)]
        for row, other in zip(rows, [b, c, b, c], strict=True):
            frames = [frame[frame["suite"] == row["suite"]] for frame in (a.steps, a.turns, other.steps, other.turns)]
            one = acceptance.compare(*frames)
            assert row["relative_percent"] == one["relative_percent"]
            assert row["conversations"] == 30
        assert [row["p_adjusted"] for row in rows] == holm([row["p_value"] for row in rows])
        assert rows[1]["p_adjusted"] < 0.05 < rows[0]["p_adjusted"]
        assert rows[0]["p_adjusted"] > rows[0]["p_value"]

    def test_differences_per_position_add_up_to_that_of_tau(self, tmp_path: Path) -> None:
        a, b = (
            stored(tmp_path / name, {"chat": rate}, seed) for seed, (name, rate) in enumerate([("a", 0.5), ("b", 0.6)])
        )
        (row,) = compare_runs([a, b])["comparisons"]
        assert [position["position"] for position in row["positions"]] == [1, 2, 3]
        total = sum(position["difference"]["value"] for position in row["positions"])
        assert total == pytest.approx(row["difference"]["value"])
        values = [position["p_value"] for position in row["positions"]]
        assert [position["p_adjusted"] for position in row["positions"]] == holm(values)

    def test_runs_of_the_same_drafter_differ_by_nothing(self, tmp_path: Path) -> None:
        run = stored(tmp_path / "a", {"chat": 0.5}, seed=1)
        (row,) = compare_runs([run, run])["comparisons"]
        assert (row["difference"]["value"], row["p_value"], row["p_adjusted"]) == (0, 1, 1)

    def test_a_longer_draft_is_compared_at_the_positions_of_both(self, tmp_path: Path) -> None:
        a, b = stored(tmp_path / "a", {"chat": 0.5}, 1), stored(tmp_path / "b", {"chat": 0.5}, 2, k=5)
        with pytest.raises(NotComparable, match="k: 3 -> 5"):
            compare_runs([a, b])
        (row,) = compare_runs([a, b], allow=["engine.k"])["comparisons"]
        assert len(row["positions"]) == 3

    def test_other_seeds_are_paired_by_conversation_and_said_so(self, tmp_path: Path) -> None:
        a, b = stored(tmp_path / "a", {"chat": 0.5}, 1), stored(tmp_path / "b", {"chat": 0.6}, 2)
        (before,) = compare_runs([a, b])["comparisons"]
        for frame in (b.turns, b.steps):
            frame["seed"] += 7
        b = altered(b, fingerprint__seeds=[7])
        with pytest.raises(NotComparable, match="seeds"):
            compare_runs([a, b])
        found = compare_runs([a, b], allow=["seeds"])
        (row,) = found["comparisons"]
        assert (row["pair_by"], before["pair_by"]) == ("conversation", "request")
        assert row["difference"] == before["difference"]
        assert found["allowed"][0].startswith("seeds: ")
        assert "No seed is in both runs" in printed(found)

    def test_recorded_runs_have_the_rao_blackwell_difference_too(self, tmp_path: Path) -> None:
        """Chance 0.5 at every position against 0.6: tau is 1 + 0.5 + 0.25 + 0.125 and 1 + 0.6 + 0.36 + 0.216."""
        a, b = (
            with_record(stored(tmp_path / name, {"chat": rate, "code": rate}, seed), rate)
            for seed, (name, rate) in enumerate([("a", 0.5), ("b", 0.6)])
        )
        rows = compare_runs([a, b])["comparisons"]
        assert rows[0]["tau_rb"]["difference"]["value"] == pytest.approx(2.176 - 1.875)
        assert rows[0]["tau_rb"]["p_value"] is None  # no spread at all
        assert "Rao–Blackwell" in printed(compare_runs([a, b]))
        counted = compare_runs([a, replace(b, steps=b.steps.drop(columns=recorded_columns(3)))])
        assert counted["comparisons"][0]["tau_rb"] is None
        assert counted["comparisons"][0]["difference"] == rows[0]["difference"]

    def test_no_common_conversation_is_one_line_that_names_the_suite(self, tmp_path: Path) -> None:
        a, b = stored(tmp_path / "a", {"chat": 0.5}, 1), stored(tmp_path / "b", {"chat": 0.6}, 2)
        for frame in (b.turns, b.steps):
            frame["conversation"] = "other " + frame["conversation"]
        with pytest.raises(UserError, match=r"suite chat: the two runs share no"):
            compare_runs([a, b])

    @pytest.mark.parametrize("k", [1, 3])
    @pytest.mark.parametrize("rate", [-9.0, 9.0])
    def test_nothing_or_everything_accepted_gives_numbers_or_words(self, tmp_path: Path, rate: float, k: int) -> None:
        a, b = stored(tmp_path / "a", {"chat": rate}, 1, k=k), stored(tmp_path / "b", {"chat": 0.5}, 2, k=k)
        for pair in ([a, b], [b, a], [a, a]):
            found = compare_runs(pair)
            json.dumps(found, allow_nan=False)
            assert "nan" not in printed(found)

    def test_one_conversation_has_differences_without_intervals(self, tmp_path: Path) -> None:
        a, b = (stored(tmp_path / name, {"chat": 0.5}, seed, conversations=1) for seed, name in enumerate("ab"))
        found = compare_runs([a, b])
        assert found["comparisons"][0]["p_adjusted"] is None
        assert "one conversation: an interval needs at least two" in printed(found)

    def test_a_single_run_is_bad_input(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="nothing to compare"):
            compare_runs([stored(tmp_path / "a", {"chat": 0.5}, 1)])


class TestCommand:
    def test_exit_codes_and_json(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a, b = (stored(tmp_path / name, {"chat": 0.5}, seed) for seed, name in enumerate("ab"))
        c = stored(tmp_path / "c", {"chat": 0.5}, 3, temperature=0.0)

        def call(*arguments: object) -> tuple[int, str, str]:
            monkeypatch.setattr("sys.argv", ["speceval", "compare", *map(str, arguments)])
            monkeypatch.setattr(
                "speceval.cli._exit", lambda code, line="": (print(line, file=sys.stderr), sys.exit(code))
            )
            with pytest.raises(SystemExit) as caught:
                main()
            return int(str(caught.value.code)), *capsys.readouterr()

        code, out, _ = call(a.directory, b.directory, "--json")
        assert code == 0
        assert json.loads(out)["comparisons"][0]["p_adjusted"] is not None
        code, _, error = call(a.directory, c.directory)
        assert (code, error.count("\n")) == (3, 1)
        assert "sampling.temperature: 1.0 -> 0.0" in error
        code, out, _ = call(a.directory, c.directory, "--allow", "sampling.temperature", "--allow", "drafting")
        assert code == 0
        assert "ALLOWED TO DIFFER: sampling.temperature: 1.0 -> 0.0" in out
        assert "DRAFTING MODES DIFFER" in out
        assert call(a.directory, b.directory, "--allow", "nonsense")[0] == 4
        assert call(a.directory)[0] == 4


def printed(found: dict[str, Any]) -> str:
    """What a reader sees."""
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(comparison_tables(found))
    return console.export_text()
