"""Patched functions as vLLM's own tests, a fork or another plugin call them: with bare runners and flat tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from vllm_patches.patches import cpu_rejection, cpu_seeded_chunk, v1_missing_q


def test_bonus_tokens_may_be_flat_as_vllm_s_kernels_read_them() -> None:
    """Two requests, drafts 1 2 and 3: the first is accepted whole, the second is replaced."""
    logits = 50 * torch.nn.functional.one_hot(torch.tensor([1, 2, 0]), 4).float()
    metadata = SimpleNamespace(all_greedy=True, all_random=False, generators={}, temperature=None)
    drafts, counts = torch.tensor([1, 2, 3]), torch.tensor([2, 3])
    for bonus in (torch.tensor([3, 3]), torch.tensor([[3], [3]])):
        output = cpu_rejection.rejection_sample(no_noise, drafts, [2, 1], 2, counts, None, logits, bonus, metadata)
        assert output.tolist() == [[1, 2, 3], [0, -1, -1]]


def test_a_runner_that_has_no_batch_is_left_to_vllm() -> None:
    """As on a rank of a pipeline that samples nothing."""
    sample_tokens = cpu_seeded_chunk.replace(lambda self, grammar_output: (self.name, grammar_output))
    assert sample_tokens(SimpleNamespace(name="bare"), "grammar") == ("bare", "grammar")


def test_q_is_reordered_for_a_runner_that_knows_nothing_else() -> None:
    probs = torch.arange(36.0).reshape(3, 3, 4)
    runner = SimpleNamespace(
        use_async_scheduling=False,
        input_batch=SimpleNamespace(req_ids=["a", "b", "c"]),
        _draft_probs=probs,
        _draft_prob_req_ids=["c", "a", "b"],
    )
    metadata = SimpleNamespace(num_draft_tokens=[2, 0, 1], draft_token_ids=torch.tensor([1, 2, 3]))
    q = v1_missing_q.get_spec_decode_draft_probs(runner, metadata)
    assert q is not None and torch.equal(q, torch.cat([probs[1, :2], probs[0, :1]]))
    runner._draft_probs = None
    assert v1_missing_q.get_spec_decode_draft_probs(runner, metadata) is None


def no_noise(*_: Any) -> torch.Tensor:
    raise AssertionError("greedy requests draw nothing")
