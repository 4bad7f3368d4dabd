"""V2 under asynchronous scheduling, with a cache that is too small: requests are preempted, and the law still holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import live, tiny

pytestmark = [pytest.mark.slow, pytest.mark.engine]

ALPHA = 1e-7
PROMPT = [3, 7, 11, 5]
K = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("v2-ahead")
    tiny.write_eagle3(root / "drafter", tiny.write_target(root / "target"))
    return root


@pytest.fixture(scope="module")
def result(root: Path) -> dict[str, Any]:
    """Short requests whose law is known, then long ones for which there is not enough cache."""
    scarce = {"max_num_seqs": 64, "max_num_batched_tokens": 300, "block_size": 32, "num_gpu_blocks_override": 80}
    llm = live.llm_arguments(root / "target", root / "drafter", "eagle3", k=K, **scarce)
    long = live.same(PROMPT, 96, max_tokens=56)
    job = {"llm": llm, "runs": [live.same(PROMPT, 1500), long], "env": live.V2, "ahead": True}
    result: dict[str, Any] = live.engines(root / "jobs", {"ahead": job})["ahead"]
    assert "error" not in result, result["error"]
    return result


def test_tokens_follow_the_targets_law_and_drafts_are_accepted_as_p_and_q_say(
    root: Path, result: dict[str, Any]
) -> None:
    target, drafter = tiny.load(root / "target"), tiny.load(root / "drafter")
    run = result["runs"][0]
    fit = live.fit_tokens(run, np.asarray(tiny.joint_law(target, PROMPT, 3, 1.0)), ALPHA)
    chances = tiny.acceptance_law(
        target, drafter, PROMPT, K, 1.0, draft_logits=tiny.eagle3_logits, truncated_drafts=False
    )
    measured = live.acceptance_p(run, [float(chance) for chance in chances])
    print(fit, measured)
    assert fit.p > ALPHA and min(p for _, p in measured) > ALPHA


def test_requests_were_preempted_and_finished_whole_and_no_kernel_left_its_tensors(result: dict[str, Any]) -> None:
    print(result["preemptions"], result["kernels"])
    assert result["preemptions"] > 0
    assert {len(tokens) for tokens in result["runs"][1]["tokens"]} == {56}
    (kernels,) = result["kernels"]
    assert kernels["strays"] == 0 and kernels["fallen_back"] == {}
