"""`v2-draft-truncation`, `v2-sampling-states`: V2's drafts follow the truncated q, and acceptance is theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import live, tiny

from vllm_patches.patches import v2_draft_truncation as patch
from vllm_patches.patches import v2_sampling_states
from vllm_patches.patches.v1_draft_sampling import truncate

ALPHA = 1e-7
PROMPT = [3, 7, 11, 5]
REQUESTS = 3000
ASKED: dict[str, Any] = {"temperature": 0.7, "top_k": 4, "top_p": 0.8}


def requests(top_k: list[int], top_p: list[float], vocabulary: int = 6) -> Any:
    """As much of vLLM's `SamplingStates` as is read."""

    def both(values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(np=values.numpy(), gpu=values)

    return SimpleNamespace(vocab_size=vocabulary, top_k=both(torch.tensor(top_k)), top_p=both(torch.tensor(top_p)))


def config(eager: bool = True, **additional: Any) -> Any:
    return SimpleNamespace(additional_config=additional, model_config=SimpleNamespace(enforce_eager=eager))


def test_each_row_keeps_what_its_requests_top_k_and_top_p_leave_at_its_temperature() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    heat, places = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([1, 0, 2, -1])
    asked = requests([6, 3, 2], [0.6, 1.0, 1.0])
    before = logits.clone()
    found = patch.truncated(logits, places, heat, asked)
    assert torch.equal(logits, before)
    for row, (temperature, top_k, top_p) in enumerate([(0.5, 3, 1.0), (1.0, 6, 0.6), (1.0, 2, 1.0), (1.0, 6, 0.6)]):
        kept = truncate(logits[row : row + 1] / temperature, torch.tensor([top_k]), torch.tensor([top_p]))[0]
        assert torch.equal(found[row].isfinite(), kept.isfinite()) and not kept.isfinite().all()
        assert torch.equal(found[row][kept.isfinite()], logits[row][kept.isfinite()])


def test_a_drafter_of_fewer_tokens_than_the_target_has_its_own_whole_vocabulary() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    found = patch.truncated(logits, torch.tensor([0]), torch.ones(1), requests([6], [0.8]))
    assert found.isfinite().tolist() == [[True, True, False, False]]


def test_nothing_is_done_where_no_request_asks_or_the_engine_does_not_truncate() -> None:
    assert not patch.any_truncated(requests([6, 6], [1.0, 1.0])) and not patch.any_truncated(None)
    assert patch.any_truncated(requests([6, 5], [1.0, 1.0])) and patch.any_truncated(requests([6, 6], [1.0, 0.9]))
    assert patch.truncates(config()) and not patch.truncates(config(eager=False))
    assert not patch.truncates(config(draft_truncation=False))


def test_the_states_of_the_newest_engine_are_the_ones_that_count() -> None:
    class States:
        def __init__(self, max_num_reqs: int, vocab_size: int) -> None:
            self.vocab_size = vocab_size

    States.__init__ = v2_sampling_states.replace(States.__init__)  # type: ignore[method-assign]
    first = States(2, 10)
    assert v2_sampling_states.states() is first
    second = States(2, 20)
    assert v2_sampling_states.states() is second
    del second
    assert v2_sampling_states.states() is None


@pytest.mark.slow
@pytest.mark.engine
class TestLive:
    @pytest.fixture(scope="class")
    def root(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("v2-truncation")
        tiny.write_eagle3(root / "drafter", tiny.write_target(root / "target"))
        return root

    @pytest.fixture(scope="class")
    def results(self, root: Path) -> Callable[[str], Any]:
        llm = live.llm_arguments(root / "target", root / "drafter", "eagle3", max_num_batched_tokens=2560)
        job = live.heard({"llm": llm, "runs": [live.same(PROMPT, REQUESTS, **ASKED), live.replayed(PROMPT)]})
        skipped = {"SPECEVAL_PATCHES_SKIP": "v2-draft-truncation"}
        jobs = {"patched": job | {"env": live.V2}, "stock": job | {"env": live.V2 | skipped}}
        done: dict[str, Any] = {}

        def result(engine: str) -> Any:
            if engine not in done:
                done.update(live.engines(root / engine, {engine: jobs[engine]}))
            return done[engine]

        return result

    @pytest.mark.parametrize("engine", ["patched", pytest.param("stock", marks=pytest.mark.long)])
    def test_tokens_follow_the_target_and_acceptance_is_that_of_the_drafts_that_were_drawn(
        self, root: Path, results: Callable[[str], Any], engine: str
    ) -> None:
        result = results(engine)
        assert "error" not in result, result.get("error")
        run, target, drafter = result["runs"][0], tiny.load(root / "target"), tiny.load(root / "drafter")
        law = tiny.joint_law(target, PROMPT, 3, ASKED["temperature"], top_k=4, top_p=0.8)
        fit = live.fit_tokens(run, np.asarray(law), ALPHA)
        p = {}
        for truncated in (True, False):
            chances = tiny.acceptance_law(
                target,
                drafter,
                PROMPT,
                3,
                ASKED["temperature"],
                top_k=4,
                top_p=0.8,
                draft_logits=tiny.eagle3_logits,
                truncated_drafts=truncated,
            )
            p[truncated] = min(value for _, value in live.acceptance_p(run, [float(chance) for chance in chances]))
        print(engine, fit.p, p)
        assert fit.p > ALPHA
        assert p[engine == "patched"] > ALPHA > p[engine != "patched"]
        live.check_heard(result, PROMPT)
