"""Drafters that propose a block at once, on V2: their kernels run as Triton runs them, and their q is truncated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import live, tiny

from vllm_patches.patches import v2_candidate_truncation, v2_draft_truncation, v2_dspark_truncation

V, K = 6, 2
PROMPTS = [[3, 7, 11, 5], [2, 9], [4, 4, 20], [13]]
WRITERS: dict[str, tuple[str, Callable[..., Path]]] = {
    "dflash": ("dflash", tiny.write_dflash),
    "dflash2": ("dflash", tiny.write_dflash2),
    "lilicorr": ("dflash", tiny.write_lilicorr),
    "dspark": ("dspark", tiny.write_dspark),
}
"""Name -> vLLM's method, what writes a checkpoint."""
ROWS = {
    "dflash": "v2-draft-truncation",
    "dflash2": "v2-candidate-truncation",
    "lilicorr": "v2-candidate-truncation",
    "dspark": "v2-dspark-truncation",
}
"""Which row truncates whose drafts."""


LONG = pytest.mark.long


def both(values: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(np=values.numpy(), gpu=values)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two requests, of which the second keeps two tokens."""
    found = SimpleNamespace(vocab_size=V, top_k=both(torch.tensor([V, 2])), top_p=both(torch.ones(2)))
    for patch in (v2_candidate_truncation, v2_dspark_truncation):
        monkeypatch.setattr(patch, "states", lambda: found)
    return found


def speculator(**own: Any) -> Any:
    settings = SimpleNamespace(additional_config={}, model_config=SimpleNamespace(enforce_eager=True))
    return SimpleNamespace(
        vllm_config=settings,
        draft_logits=torch.zeros(2, K, V),
        temperature=torch.tensor([1.0, 0.5]),
        sample_idx_mapping=torch.tensor([1, 1, 0, 0, -1, -1]),
        **own,
    )


def test_dspark_draws_from_what_a_request_keeps_of_its_drafters_own_vocabulary(requests: Any) -> None:
    seen: list[torch.Tensor] = []
    sample = v2_dspark_truncation.replace(lambda self, logits, *rest: seen.append(logits))
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 2.0, 0.0]])
    sample(speculator(), logits, torch.tensor([1, 0]), torch.zeros(2), 0)
    greedy = speculator()
    greedy.draft_logits = None
    sample(greedy, logits, torch.tensor([1, 0]), torch.zeros(2), 0)
    assert seen[0].isfinite().tolist() == [[True, False, True, False], [True] * 4]
    assert seen[1] is logits


def test_candidates_are_truncated_after_each_one_that_may_come_before_them(requests: Any) -> None:
    scores = torch.randn(2, K, 4, 4, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    class Speculator(SimpleNamespace):
        def _score_candidates(self, *given: Any) -> torch.Tensor:
            return scores

        def _generate_draft(self, num_reqs: int) -> None:
            seen.append(self._score_candidates())

    drafter = Speculator(**vars(speculator()))
    v2_candidate_truncation.replace(Speculator._generate_draft)(drafter, 2)
    kept = seen[0].isfinite().sum(-1)
    assert (kept[0] == 2).all() and (kept[1] == 4).all()  # the first two rows are of the request that keeps two
    best = scores[0].topk(2).indices
    assert seen[0][0].gather(-1, best).isfinite().all()
    assert drafter._score_candidates() is scores  # as it was


def test_each_speculator_is_said_to_be_truncated_by_the_row_that_acts_on_it() -> None:
    row = v2_draft_truncation.row
    assert row(SimpleNamespace(model=object())) == row(None) == "v2-draft-truncation"
    assert row(SimpleNamespace(_sample_logits=0)) == "v2-dspark-truncation"
    assert row(SimpleNamespace(candidate_sampler=0)) == "v2-candidate-truncation"
    assert row(SimpleNamespace(_sample_logits=0, model=SimpleNamespace(sample_sequential=0))) == ""


@pytest.mark.slow
@pytest.mark.engine
class TestLive:
    @pytest.fixture(scope="class")
    def root(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("v2-blocks")
        target = tiny.write_target(root / "target")
        for name, (_, write) in WRITERS.items():
            write(root / name, target)
        return root

    @pytest.fixture(scope="class")
    def results(self, root: Path) -> Callable[..., list[Any]]:
        """Results of engines by name: a drafter's, alone or followed by "stock", without the row that truncates it, or
        by "checked", each kernel launched twice, in lockstep and by Triton's interpreter."""
        done: dict[str, Any] = {}

        def result(*names: str) -> list[Any]:
            missing = {name: job(root, name) for name in names if name not in done}
            done.update(live.engines(root / "-".join(missing or ["none"]), missing))
            failed = [done[name]["error"] for name in names if "error" in done[name]]
            assert not failed, failed[0]
            return [done[name] for name in names]

        return result

    @pytest.mark.parametrize(
        "name", ["dflash2", *(pytest.param(one, marks=LONG) for one in ("dflash", "lilicorr", "dspark"))]
    )
    def test_with_one_token_left_of_q_equal_requests_have_equal_steps(
        self, results: Callable[..., list[Any]], name: str
    ) -> None:
        """Only the drafts could differ: at top-k 1 the target's tokens cannot."""
        (found,) = results(name)
        assert variants(found) == {1}
        (kernels,) = found["kernels"]
        assert kernels["fallen_back"] == {} and kernels["strays"] == 0
        assert "_prepare_dflash_inputs_kernel" in kernels["launches"]

    @pytest.mark.long
    @pytest.mark.parametrize("name", WRITERS)
    def test_as_released_they_have_not(self, results: Callable[..., list[Any]], name: str) -> None:
        (result,) = results(f"{name} stock")
        assert max(variants(result)) > 1

    @pytest.mark.long
    @pytest.mark.parametrize("name", WRITERS)
    def test_lockstep_leaves_each_tensor_as_tritons_interpreter_does(
        self, results: Callable[..., list[Any]], name: str
    ) -> None:
        (result,) = results(f"{name} checked")
        (kernels,) = result["kernels"]
        assert kernels["differences"] == [] and kernels["fallen_back"] == {} and kernels["strays"] == 0


def job(root: Path, name: str) -> dict[str, Any]:
    """The engine that `TestLive.results` calls so."""
    drafter, _, mode = name.partition(" ")
    small = {"max_num_seqs": 8, "max_num_batched_tokens": 64} if mode == "checked" else {"max_num_batched_tokens": 256}
    mixed = [{"temperature": heat, "top_k": k, "max_tokens": 5} for heat in (0.0, 0.7, 1.0) for k in (0, 4)]
    one = {"temperature": 1.0, "top_k": 1, "max_tokens": 6}
    checked = {"prompts": [PROMPTS[0]] * len(mixed), "params": mixed}
    run = checked if mode == "checked" else {"prompts": PROMPTS * 8, "params": one}
    extra = {"stock": {"SPECEVAL_PATCHES_SKIP": ROWS[drafter]}, "checked": {"SPECEVAL_INTERPRETED": "check"}}
    llm = live.llm_arguments(root / "target", root / drafter, WRITERS[drafter][0], **{"max_num_seqs": 32} | small)
    return {"llm": llm, "runs": [run], "env": live.V2 | extra.get(mode, {})}


def variants(result: dict[str, Any]) -> set[int]:
    """How many different accepted counts the requests of each prompt have."""
    accepted = result["runs"][0]["accepted"]
    return {len({tuple(row) for row in accepted[start :: len(PROMPTS)]}) for start in range(len(PROMPTS))}
