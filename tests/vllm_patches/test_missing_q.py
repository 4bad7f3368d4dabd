"""Patches `v1-missing-q` and `cpu-rejection` on a live engine: steps that vLLM pads instead of drafting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import live, tiny

pytestmark = [pytest.mark.slow, pytest.mark.engine]

ALPHA = 1e-8
LONG = [(7 * i) % tiny.VOCAB for i in range(33)]  # one token more than a block: a cache hit leaves that one
SHORT = [5]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    target = tiny.write_target(root / "target")
    return target, tiny.write_draft_model(root / "draft", target)


@pytest.fixture(scope="module")
def results(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    llm = live.llm_arguments(*models, "draft_model", enable_prefix_caching=True, block_size=32, max_num_seqs=128)
    few = [live.same(LONG, 1000, max_tokens=4)]
    jobs = {
        "patched": {"llm": llm, "runs": [live.same(LONG, 3000, max_tokens=4), live.same(SHORT, 3000)]},
        # A budget of 16 requests with their drafts, for 64: each waits for several steps with its drafts.
        "starved": {
            "llm": llm | {"max_num_seqs": 64, "max_num_batched_tokens": 64, "enable_prefix_caching": False},
            "runs": [live.same(SHORT, 2000)],
        },
        # Room for 24 prompts, of which each needs twice that from its second token on.
        "preempted": {
            "llm": llm | {"num_gpu_blocks_override": 24, "enable_prefix_caching": False},
            "runs": [live.same(LONG[:27], 1500)],
        },
        "lost": {"llm": llm, "runs": few, "env": {"SPECEVAL_PATCHES_SKIP": "v1-missing-q"}},
        "accepted": {
            "llm": llm,
            "runs": [live.same(LONG, 1500, max_tokens=4)],
            "env": {"SPECEVAL_PATCHES_SKIP": "cpu-rejection"},
        },
    }
    return live.engines(tmp_path_factory.mktemp("engines"), jobs)


def second_steps(run: dict[str, Any]) -> dict[str, Any]:
    """Without the first request, which filled the cache, and the first step of each other, which was padded."""
    return {"accepted": run["accepted"][1:]}


def theory(models: tuple[Path, Path], k: int) -> list[float]:
    target, drafter = map(tiny.load, models)
    return tiny.acceptance_law(target, drafter, LONG, k, 1.0, draft_logits=tiny.draft_model_logits)


@pytest.mark.parametrize(
    ("name", "index", "prompt"),
    [("patched", 0, LONG), ("patched", 1, SHORT), ("starved", 0, SHORT), ("preempted", 0, LONG[:27])],
    ids=["cache hit", "one-token prompt", "small budget", "preempted"],
)
def test_tokens_follow_the_target(
    models: tuple[Path, Path], results: dict[str, Any], name: str, index: int, prompt: list[int]
) -> None:
    """Joint law of the first two tokens; power 0.9 against a bias of TV 0.12 (small budget 0.14, preempted 0.16)."""
    law = tiny.joint_law(tiny.load(models[0]), prompt, 2, 1.0).numpy()
    found = live.fit_tokens(results[name]["runs"][index], law, ALPHA)
    print(found)
    assert found.p > ALPHA


def test_the_step_after_a_padded_one_accepts_what_is_due(models: tuple[Path, Path], results: dict[str, Any]) -> None:
    """P(A >= 1), P(A >= 2) within exact binomial tests: standard error 0.009."""
    chances = theory(models, 2)
    found = live.acceptance_p(second_steps(results["patched"]["runs"][0]), chances, step=1)
    print(chances, found)
    assert all(p > ALPHA for _, p in found)


def test_padded_steps_are_counted_and_accept_nothing(results: dict[str, Any]) -> None:
    for run in results["patched"]["runs"]:
        assert run["counts"]["steps_padded"] > 2000
        assert run["counts"]["steps_with_q"] > 2000
        assert run["counts"]["steps_one_hot"] == 0
    run = results["patched"]["runs"][0]
    assert all(accepted[0] == 0 for accepted in run["accepted"][1:])
    assert run["counts"]["steps_padded"] == len(run["accepted"]) - 1


def test_drafts_older_than_the_last_drafting_step_are_counted(results: dict[str, Any]) -> None:
    counts = results["starved"]["runs"][0]["counts"]
    print(counts)
    assert counts["steps_one_hot"] > 0
    assert counts["steps_with_q"] > 100


def test_the_small_cache_did_preempt(results: dict[str, Any]) -> None:
    print(results["preempted"]["preemptions"], results["preempted"]["runs"][0]["counts"])
    assert results["preempted"]["preemptions"] > 20


def test_without_the_patch_the_acceptance_is_lost(models: tuple[Path, Path], results: dict[str, Any]) -> None:
    found = live.acceptance_p(second_steps(results["lost"]["runs"][0]), theory(models, 1), step=1)
    print(found)
    assert found[0][1] < 1e-12


def test_stock_rejection_kernels_bias_the_first_token_after_a_cache_hit(
    models: tuple[Path, Path], results: dict[str, Any]
) -> None:
    law = tiny.joint_law(tiny.load(models[0]), LONG, 1, 1.0).numpy()
    found = live.fit_tokens(results["accepted"]["runs"][0], law, ALPHA)
    print(found)
    assert found.p < 1e-12
