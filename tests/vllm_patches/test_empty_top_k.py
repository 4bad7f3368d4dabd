"""Patch `empty-top-k`: the sampling constraints of a step without draft tokens, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import types
import torch
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.v1.sample import rejection_sampler
metadata = types.SimpleNamespace(
    all_greedy=False, temperature=torch.ones(2), top_k=torch.tensor([3, 3], dtype=torch.int32), top_p=None
)
for drafts in ([2, 3], [0, 0]):
    cumulative = torch.tensor(drafts).cumsum(0).to(torch.int32)
    logits = torch.randn(sum(drafts), 24)
    filtered = rejection_sampler.apply_sampling_constraints(logits, cumulative, metadata)
    print(sum(drafts), torch.isfinite(filtered).sum(-1).tolist())
"""


STOCK = """
import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
apply_top_k_top_p(torch.empty(0, 24), torch.empty(0, dtype=torch.int32), None)
"""


def run(script: str, patches: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SPECEVAL_PATCHES": patches}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_step_without_drafts_has_nothing_to_filter_and_others_are_filtered_as_before() -> None:
    done = run(SCRIPT, patches="1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == ["5 [3, 3, 3, 3, 3]", "0 []"]


@pytest.mark.slow
def test_vllm_s_own_filter_dies_on_no_rows() -> None:
    done = run(STOCK, patches="0")
    assert done.returncode != 0
    assert "Expected reduction dim" in done.stderr
