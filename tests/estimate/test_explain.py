"""Every other tool's number, computed by hand for one small generation that has everything which tells them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.records import altered, content

from speceval import cli, store
from speceval.errors import UserError
from speceval.estimate import acceptance, explain
from speceval.estimate.identities import reconcile

K = 3
REQUESTS: dict[tuple[str, int, int], tuple[str, int, list[tuple[int, int, int]]]] = {
    # (conversation, seed, turn): finish, padded steps, steps (drafted, accepted, committed)
    ("a", 0, 1): ("stop", 0, [(3, 2, 3), (3, 3, 2)]),  # EOS is the second of three accepted drafts
    ("a", 0, 2): ("length", 0, [(3, 0, 1), (2, 1, 2), (0, 0, 1), (3, 3, 3)]),  # the bonus token is past max_tokens
    ("b", 0, 1): ("stop", 0, []),  # the prefill's token is EOS
    ("b", 1, 1): ("stop", 1, [(3, 1, 2)]),  # EOS is the recovered token
}
TAU = 1 + 10 / 6
"""10 accepted in 6 steps with drafts; beside them one step without, one padded; 7 steps after the 4 prefills."""
EXPECTED = {
    ("vLLM log, vllm bench serve", "mean acceptance length"): 1 + 10 / 7,
    ("LK Losses paper", "tau"): 1 + 3 * 10 / 17,
    ("SGLang server", "accept len, avg_spec_accept_length"): (3 + 2 + 1 + 2 + 1 + 3 + 2) / 7,
    ("SGLang server, overlap scheduler", "the same"): (3 + 4 + 1 + 2 + 1 + 4 + 2) / 7,
    ("SGLang requests", "completion_tokens / spec_verify_ct"): (6 + 8 + 1 + 3) / 7,
    ("SpecForge benchmarks", "accept length"): (6 + 8 + 1 + 3) / 7,
    # requests with a step: output 6 8 3, decode steps 2 4 1
    ("SpecForge benchmarks/sglang.py", "mean of spec_accept_length"): (6 / 2 + 8 / 4 + 3 / 1) / 3,
    # chunks: 1 3 1 | 1 1 2 1 3 | (EOS alone: none) | 1 1
    ("Model-Optimizer specdec_bench", "Average AL"): (5 / 3 + 8 / 5 + 2 / 2) / 3,
    # without the first and the last, EOS kept: 3 | 1 2 1 | none | none
    ("Model-Optimizer specdec_bench, its July branch", "Average AL"): (3 + 4 / 3 + 1 + 1) / 4,
    ("EAGLE", "accepted + 1, mean over steps"): 17 / 7,
    ("EAGLE answer files", "new_tokens / idxs, pooled"): 17 / (1 + 3 + 0),
    # 3 2 | 1 2 1 4 | | 2: the EOS step ends at EOS, the max_tokens step does not
    ("DeepSpec", "accept_len"): 15 / 7,
    ("aiperf", "Acceptance Length, mean"): ((1 + 5 / 2) + (1 + 4 / 3) + (1 + 1 / 2)) / 3,
    ("aiperf", "Token-Weighted Acceptance Length"): 1 + 10 / 7,
    # accepted 5 4 1 of drafted 6 8 6 in verify steps 2 3 2, the padded ones with K drafts
    ("aiperf", "Draft Acceptance Rate, mean"): (5 / 6 + 4 / 8 + 1 / 6) / 3,
    ("aiperf", "Accepted per Verified, mean"): (7 / 8 + 7 / 11 + 3 / 8) / 3,
}
LENGTHS = {key: value for key, value in EXPECTED.items() if key[1] not in explain.RATES}


def frames(requests: dict[Any, Any] = REQUESTS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`requests` as the two tables of one suite."""
    lines = [
        {
            "suite": "hand",
            "conversation": conversation,
            "seed": seed,
            "category": "",
            "turns": [
                {
                    "turn": turn,
                    "prompt_tokens": 9,
                    "cached_tokens": 0,
                    "token_ids": [7] * (1 + sum(committed for *_, committed in rows)),
                    "finish_reason": finish,
                    "padded_steps": padded,
                    "steps": rows,
                }
            ],
        }
        for (conversation, seed, turn), (finish, padded, rows) in requests.items()
    ]
    turns, steps = store.frames(lines)
    return steps, turns


def rows(temperature: float = 1.0, drafting: str = "probabilistic") -> dict[tuple[str, str], explain.Row]:
    return {(row.tool, row.quantity): row for row in explain.explain(*frames(), K, temperature, drafting)}


def test_the_hand_made_generation_is_one_that_the_harness_could_have_stored() -> None:
    steps, turns = frames()
    assert reconcile(steps, turns) == []
    assert acceptance.tau(steps) == pytest.approx(TAU)


def test_every_tool_s_number_is_the_one_computed_by_hand() -> None:
    found = rows()
    assert {key: row.value for key, row in found.items()} == pytest.approx(EXPECTED)
    differences = {key: row.difference for key, row in found.items() if row.difference is not None}
    assert differences == pytest.approx({key: value - TAU for key, value in LENGTHS.items()})
    assert all(row.read_in for row in found.values())


def test_the_rates_per_position_follow_each_tool_s_own_definition() -> None:
    printed = {row.tool: row.positions for row in rows().values() if row.positions_are}
    assert printed.keys() == {"vLLM log, vllm bench serve", "Model-Optimizer specdec_bench", "DeepSpec"}
    assert printed["vLLM log, vllm bench serve"] == pytest.approx([5 / 7, 3 / 7, 2 / 7])
    # Chunk lengths: seven of 1, one of 2, two of 3; no chunk of 4.
    assert printed["Model-Optimizer specdec_bench"] == [pytest.approx(3 / 10), pytest.approx(2 / 3), None]
    # Proposed 3 2 3 2 0 3 3, accepted 2 2 0 1 0 3 1.
    assert printed["DeepSpec"] == pytest.approx([5 / 6, 3 / 6, 1 / 4])


def test_specdec_bench_s_conditional_rate_skips_lengths_that_do_not_occur() -> None:
    """Lengths 1, 1, 3, 4: the rate of 3 is against all, that of 4 against those of at least 3."""
    assert explain.conditional_by_length(pd.Series([1, 1, 3, 4]), 3) == [None, 2 / 4, 1 / 2]


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        ("vLLM log, vllm bench serve", ["not counted: 1", "counted with nothing accepted: 1"]),
        ("LK Losses paper", ["10 of 17", "fewer than K=3 drafts: 1"]),
        ("SGLang server", ["past the end dropped: 3", "count as verify steps: 1", "q = 0"]),
        ("SGLang requests", ["no step: 4 requests"]),
        ("SpecForge benchmarks", ["top_k = 1"]),
        ("Model-Optimizer specdec_bench", ["the same: 3", "EOS tokens dropped: 3", "without a chunk: 1"]),
        ("EAGLE answer files", ["each of 3 requests", "q taken as 1"]),
        ("DeepSpec", ["past EOS dropped, no bonus there: 2", "past max_tokens kept: 1", "first turns only", "2.333"]),
    ],
)
def test_the_reason_names_what_made_the_difference_in_this_run(tool: str, says: list[str]) -> None:
    reason = next(row.reason for row in rows().values() if row.tool == tool)
    assert [part for part in says if part not in reason] == []
    assert "\n" not in reason


def test_other_sampling_is_only_blamed_where_something_is_sampled() -> None:
    greedy = " ".join(row.reason for row in rows(0.0, "greedy").values())
    assert (
        "sampled drafts" not in greedy
        and "q = 0" not in greedy
        and "top_k" not in greedy
        and "taken as 1" not in greedy
    )


@pytest.mark.parametrize(
    "requests", [{}, {("a", 0, 1): ("stop", 0, [])}, {("a", 0, 1): ("length", 0, [(0, 0, 1)])}], ids=len
)
def test_nothing_drafted_gives_plain_values(requests: dict[Any, Any]) -> None:
    for row in explain.explain(*frames(requests), K, 1.0, "probabilistic"):
        assert row.difference is None
        json.dumps([row.value, row.positions], allow_nan=False)


def test_everything_accepted_gives_every_tool_k_plus_one() -> None:
    """Long requests: what the ends do vanishes, so that any tool is far off only by a wrong denominator."""
    requests = {("a", seed, 1): ("length", 0, [(3, 3, 4)] * 4000) for seed in range(2)}
    for row in explain.explain(*frames(requests), K, 1.0, "probabilistic"):
        due = 1 if row.quantity in explain.RATES else 4
        assert row.value == pytest.approx(due, abs=0.002), row.tool


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    steps, turns = frames()
    turns.to_parquet(tmp_path / store.TURNS)
    steps.to_parquet(tmp_path / store.STEPS)
    made = content(
        problems=["[red]one"], spec__k=K, spec__suites=("hand",), spec__seeds=(0, 1), conversations=3, segments=[]
    )
    (tmp_path / store.RUN).write_text(json.dumps(made))
    return tmp_path


def test_a_replay_has_nothing_to_count(stored: Path) -> None:
    run = altered(store.read_run(stored), spec__replay="0123")
    with pytest.raises(UserError, match="a replay has no accepted tokens"):
        explain.explain_run(run)


def test_the_command_prints_the_table_and_the_same_as_json(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["speceval", "explain", str(stored), *arguments])
        cli.app(["explain", str(stored), *arguments], standalone_mode=False)
        return capsys.readouterr().out

    text = call()
    assert "2.4286" in text and "-0.2381" in text and "PROBLEM: [red]one" in text
    shown = json.loads(call("--json"))["suites"]["hand"]
    assert shown["tau"] == pytest.approx(TAU)
    values = {(row["tool"], row["quantity"]): row["value"] for row in shown["tools"]}
    assert values == pytest.approx(EXPECTED)
