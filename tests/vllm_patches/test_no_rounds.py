"""Which steps count as verify steps although nothing was drafted in them, with and without prefix caching.

Nothing is patched here: the counters tell how many there were, and these tests tell when to expect them.
"""

from __future__ import annotations

from typing import Any

import pytest
from support import live, tiny

pytestmark = [pytest.mark.long, pytest.mark.engine]  # test_engine_runs counts padded rounds every time

K, LIMIT = 3, 48
BLOCK = [(7 * i) % tiny.VOCAB for i in range(33)]  # one token more than a block of the cache
SHORT = [3, 7, 11, 5]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("models")
    target = tiny.write_target(root / "target")
    draft_model, eagle3 = tiny.write_draft_model(root / "draft", target), tiny.write_eagle3(root / "eagle", target)
    common = {"block_size": 32, "max_num_seqs": 32, "max_model_len": LIMIT}
    hits = live.same(BLOCK, 100, max_tokens=6)
    one_token = live.same([5], 100, max_tokens=6)
    short = live.same(SHORT, 60, max_tokens=12)
    to_the_limit = {
        "prompts": [BLOCK, *short["prompts"]],
        "params": [{"temperature": 1.0, "max_tokens": LIMIT - len(BLOCK)}] + [short["params"]] * 60,
    }
    jobs = {
        "draft_model, cache": {
            "llm": live.llm_arguments(target, draft_model, "draft_model", enable_prefix_caching=True, **common),
            "runs": [hits],
        },
        "draft_model, no cache": {
            "llm": live.llm_arguments(target, draft_model, "draft_model", **common),
            "runs": [hits, one_token, short, to_the_limit],
        },
        "eagle3, cache": {
            "llm": live.llm_arguments(target, eagle3, "eagle3", enable_prefix_caching=True, **common),
            "runs": [hits],
        },
    }
    return live.engines(tmp_path_factory.mktemp("engines"), jobs)


def test_a_cache_hit_of_the_whole_prompt_pads_the_step_of_the_first_token(results: dict[str, Any]) -> None:
    """All but the first request, which fills the cache: K drafts counted, none accepted."""
    run = results["draft_model, cache"]["runs"][0]
    assert run["counts"]["steps_padded"] == 99
    assert all(
        (row[0], drafted[0]) == (0, K) for row, drafted in zip(run["accepted"][1:], run["drafted"][1:], strict=True)
    )


def test_without_the_cache_only_one_token_prompts_are_padded(results: dict[str, Any]) -> None:
    runs = results["draft_model, no cache"]["runs"]
    assert runs[0]["counts"]["steps_padded"] == 0
    assert runs[1]["counts"]["steps_padded"] > 0
    assert runs[2]["counts"]["steps_padded"] == 0


def test_eagle_is_exempt_because_it_drops_the_last_cached_block(results: dict[str, Any]) -> None:
    assert results["eagle3, cache"]["runs"][0]["counts"]["steps_padded"] == 0


def test_one_sequence_near_the_limit_takes_the_drafts_of_the_whole_batch(results: dict[str, Any]) -> None:
    """vLLM then schedules the token id 0 as draft of every request; away from the limit no step is without q."""
    runs = results["draft_model, no cache"]["runs"]
    assert runs[2]["counts"]["steps_one_hot"] == 0
    assert runs[3]["counts"]["steps_one_hot"] > 10
