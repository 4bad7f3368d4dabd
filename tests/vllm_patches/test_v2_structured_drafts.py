"""`v2-grammar-drafts`, `v2-grammar-cut`: requests with a grammar follow the target on the V2 runner, sampled drafts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import live, tiny

from vllm_patches.patches import v2_grammar_cut, v2_grammar_drafts

ALPHA = 1e-8
PROMPT = [3, 7, 11, 5]
GONE = -torch.inf


# ------------------------------------------------------------------------------------------------ the verifier


def told(logits: Any, tokens: list[int], invalid: list[bool] | None, q: Any = "q") -> Any:
    """The `invalid_drafts` that vLLM's own verifier is given."""
    sampler = v2_grammar_drafts.replace(lambda self, logits, batch, q=None, invalid=None: invalid)
    batch = SimpleNamespace(input_ids=torch.tensor([9, *tokens]), logits_indices=torch.arange(1, len(tokens) + 1))
    found = sampler(None, torch.tensor(logits), batch, q, None if invalid is None else torch.tensor(invalid))
    return found if found is None else found.tolist()


def test_a_draft_that_p_excludes_is_left_to_the_verifier_and_any_other_is_still_none() -> None:
    """Rows of one request: its last token, then drafts 1, 2, 0. The mask of the place of draft 2 excludes it."""
    logits = [[0.0, 1.0, 2.0], [0.0, 1.0, GONE], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    assert told(logits, [0, 1, 2, 0], [False, False, True, True]) == [False, False, False, True]
    allowed = [[0.0, 1.0, 2.0]] * 4  # a placeholder, say: the mask of the place after it is not known
    assert told(allowed, [0, 1, 2, 0], [False, False, True, True]) == [False, False, True, True]


def test_padding_and_certain_drafts_are_as_vllm_has_them() -> None:
    logits = [[GONE, 1.0], [0.0, 1.0]]
    assert told(logits, [1, -1], [False, True]) == [False, True]
    assert told(logits, [1, 0], [False, True], q=None) == [False, True]
    assert told(logits, [1, 0], None) is None


# ------------------------------------------------------------------------------------------------ the scheduler


def scheduled(allowed: int, drafts: list[int], runner: str = "V2", grammar: bool = True, **config: Any) -> list[int]:
    """What of a request's drafts is scheduled when the grammar allows the first few."""
    drafter = SimpleNamespace(**{"draft_sample_method": "probabilistic", "method": "eagle3"} | config)
    request = SimpleNamespace(use_structured_output=grammar, is_prefill_chunk=False, spec_token_ids=[])
    scheduler = SimpleNamespace(
        vllm_config=SimpleNamespace(use_v2_model_runner=runner == "V2", speculative_config=drafter),
        requests={"a": request},
    )

    def update(self: Any, given: Any) -> None:
        request.spec_token_ids = given.draft_token_ids[0][:allowed]

    given = SimpleNamespace(req_ids=["a", "finished"], draft_token_ids=[drafts, [1]])
    v2_grammar_cut.replace(update)(scheduler, given)
    found: list[int] = request.spec_token_ids
    return found


def test_the_first_draft_that_is_cut_keeps_its_place_where_it_is_verified_with_its_q() -> None:
    assert scheduled(1, [5, 6, 7]) == [5, -1] and scheduled(0, [5, 6, 7]) == [-1]
    assert scheduled(3, [5, 6, 7]) == [5, 6, 7]
    assert scheduled(1, [5, -1, -1]) == [5]  # nothing was drafted there
    assert scheduled(1, [5, 6], runner="V1") == scheduled(1, [5, 6], grammar=False) == [5]
    assert scheduled(1, [5, 6], draft_sample_method="greedy") == scheduled(1, [5, 6], method="ngram") == [5]


# ------------------------------------------------------------------------------------------------ live


@pytest.mark.slow
@pytest.mark.engine
class TestLive:
    @pytest.fixture(scope="class")
    def models(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        root = tmp_path_factory.mktemp("models")
        target = tiny.write_tokenizer(tiny.write_target(root / "target"))
        return target, tiny.write_eagle3(root / "draft", target)

    @pytest.mark.parametrize(
        ("patched", "ahead"),
        [(True, False), *(pytest.param(*case, marks=pytest.mark.long) for case in [(True, True), (False, False)])],
    )
    def test_tokens_under_a_grammar_follow_the_target_with_the_patches_and_not_without(
        self, models: tuple[Path, Path], tmp_path: Path, patched: bool, ahead: bool
    ) -> None:
        """Every second request has a grammar; `ahead`: asynchronous scheduling."""
        llm = live.llm_arguments(*models, "eagle3", skip_tokenizer_init=False, max_num_batched_tokens=2560)
        params = [{"temperature": 1.0, "max_tokens": 3} | (tiny.LETTERS if i % 2 else {}) for i in range(4000)]
        skip = {} if patched else {"SPECEVAL_PATCHES_SKIP": "v2-grammar-drafts,v2-grammar-cut"}
        runs = [{"prompts": [PROMPT] * len(params), "params": params}, live.replayed(PROMPT)]
        job = live.heard({"llm": llm, "runs": runs, "ahead": ahead})
        result = live.engines(tmp_path, {"engine": job | {"env": live.V2 | skip}})["engine"]
        assert "error" not in result, result.get("error")
        run, target, drafter = result["runs"][0], *map(tiny.load, models)
        for grammar in (False, True):
            mine, allowed = slice(int(grammar), None, 2), tiny.ONLY_LETTERS if grammar else tiny.EVERYTHING
            law = tiny.joint_law(target, PROMPT, 3, 1.0, allowed=allowed)
            fit = live.fit_tokens({"tokens": run["tokens"][mine]}, law.numpy(), ALPHA)
            chances = tiny.acceptance_law(target, drafter, PROMPT, 2, 1.0, allowed=allowed)
            rates = live.acceptance_p({"accepted": run["accepted"][mine]}, chances)
            print("grammar" if grammar else "free", fit, chances, rates)
            assert (fit.p > ALPHA) == (patched or not grammar)
            assert not patched or min(p for _, p in rates) > ALPHA
        assert result["kernels"][0]["strays"] == 0 and result["kernels"][0]["fallen_back"] == {}
        live.check_heard(result, PROMPT)
