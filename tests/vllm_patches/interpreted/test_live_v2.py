"""vLLM's V2 runner, live on a CPU: its output follows the target's law, its acceptance is the drafter's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import live, tiny

pytestmark = [pytest.mark.slow, pytest.mark.engine]

ALPHA = 1e-7
"""False-alarm rate of each test."""
PROMPT = [3, 7, 11, 5]
REQUESTS = 6000
K = 3
BATCH = {"max_num_batched_tokens": 2560}  # what does not hold tokens is padded, which takes time here

Logits = Callable[..., Any]
DRAFTERS: dict[str, tuple[Callable[[Path, Path], Path], Logits, dict[str, Any]]] = {
    "eagle3": (tiny.write_eagle3, tiny.eagle3_logits, {}),
    "draft_model": (tiny.write_draft_model, tiny.draft_model_logits, {}),
    "mtp": (tiny.write_mtp, tiny.mtp_logits, {"hf_overrides": tiny.MTP_OVERRIDES}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("v2")
    target = tiny.write_target(root / "target")
    for method, (write, _, _) in DRAFTERS.items():
        write(root / method, target)
    return root


@pytest.fixture(scope="module")
def results(root: Path) -> dict[str, Any]:
    jobs = {
        method: {
            "llm": live.llm_arguments(root / "target", root / method, method, k=K, **BATCH, **overrides),
            "runs": [live.same(PROMPT, REQUESTS)],
            "env": live.V2,
        }
        for method, (_, _, overrides) in DRAFTERS.items()
    }
    return live.engines(root / "jobs", jobs)


@pytest.fixture(scope="module")
def checked(root: Path) -> dict[str, Any]:
    """What the kernels of an engine did whose every launch is made twice."""
    mixed: list[dict[str, Any]] = [{"temperature": heat, "top_k": k} for heat in (0.0, 0.7, 1.0) for k in (0, 4)]
    mixed += [{"repetition_penalty": 1.5, "frequency_penalty": 0.5}, {"presence_penalty": 1.0}, {"logprobs": 2}]
    mixed += [{"allowed_token_ids": [3, 5, 7], "min_tokens": 3}]
    small = {"max_num_seqs": 8, "max_num_batched_tokens": 64}
    job = {
        "llm": live.llm_arguments(root / "target", root / "eagle3", "eagle3", k=K, **small),
        "runs": [{"prompts": [PROMPT] * len(mixed), "params": [{"max_tokens": 5} | params for params in mixed]}],
        "env": live.V2 | {"SPECEVAL_INTERPRETED": "check"},
    }
    result = live.engines(root / "checked", {"check": job})["check"]
    assert "error" not in result, result["error"]
    kernels: dict[str, Any] = result["kernels"][0]
    return kernels


@pytest.mark.parametrize("method", DRAFTERS)
def test_tokens_follow_the_targets_law_and_drafts_are_accepted_as_p_and_q_say(
    root: Path, results: dict[str, Any], method: str
) -> None:
    assert "error" not in results[method], results[method].get("error")
    run, target = results[method]["runs"][0], tiny.load(root / "target")
    fit = live.fit_tokens(run, np.asarray(tiny.joint_law(target, PROMPT, 3, 1.0)), ALPHA)
    assert fit.p > ALPHA, fit
    chances = tiny.acceptance_law(
        target, tiny.load(root / method), PROMPT, K, 1.0, draft_logits=DRAFTERS[method][1], truncated_drafts=False
    )
    measured = live.acceptance_p(run, [float(chance) for chance in chances])
    print(method, fit, measured)
    assert min(p for _, p in measured) > ALPHA


@pytest.mark.parametrize("method", DRAFTERS)
def test_every_kernel_runs_in_lockstep_and_none_leaves_its_tensors(results: dict[str, Any], method: str) -> None:
    (kernels,) = results[method]["kernels"]
    assert kernels["fallen_back"] == {} and kernels["strays"] == 0
    assert {"_rejection_kernel", "_gumbel_sample_kernel", "_resample_kernel"} <= kernels["launches"].keys()


def test_lockstep_leaves_each_tensor_of_each_kernel_as_tritons_interpreter_does(checked: dict[str, Any]) -> None:
    """Greedy, sampled, truncated and penalised requests in one batch, through every kernel of the path."""
    print(checked)
    assert checked["differences"] == [] and checked["fallen_back"] == {} and checked["strays"] == 0
    assert len(checked["launches"]) >= 20 and {"_penalties_kernel", "_bincount_kernel"} <= checked["launches"].keys()
