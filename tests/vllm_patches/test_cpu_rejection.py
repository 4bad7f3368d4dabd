"""Patch `cpu-rejection`: the function's law on random tables, and vLLM's own kernels on padded drafts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from speceval.law import fit
from vllm_patches.cpu_rejection import rejection_sample

ALPHA = 1e-9
VOCAB, K, REQUESTS = 6, 3, 60000

STOCK = """
import json, sys, torch
from test_cpu_rejection import padded
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler
current_platform.import_kernels()
current_platform.register_triton_kernel_overrides()
print(json.dumps([padded(rejection_sampler.rejection_sample, with_q) for with_q in (False, True)]))
"""


def uniforms(tokens: int, counts: list[int], generators: dict[int, torch.Generator], device: Any) -> torch.Tensor:
    return torch.rand(tokens, dtype=torch.float64)


def ours(*arguments: Any, **options: Any) -> torch.Tensor:
    return rejection_sample(uniforms, *arguments, **options)


def metadata(temperature: list[float]) -> Any:
    """The fields of vLLM's SamplingMetadata that the rejection step reads."""
    values = torch.tensor(temperature)
    return SimpleNamespace(
        temperature=values,
        all_greedy=bool((values == 0).all()),
        all_random=bool((values > 0).all()),
        generators={},
    )


def tables(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """p [K + 1, VOCAB] and q [K, VOCAB]; q is 0 at one token of each position."""
    draw = torch.Generator().manual_seed(seed)
    p = torch.softmax(1.5 * torch.randn(K + 1, VOCAB, generator=draw), -1)
    q = torch.softmax(1.5 * torch.randn(K, VOCAB, generator=draw), -1)
    q[torch.arange(K), torch.arange(K)] = 0
    return p, q / q.sum(-1, keepdim=True)


def continued(output: torch.Tensor, p: torch.Tensor) -> np.ndarray:
    """Each request's output tokens [n, K + 1], with what follows its last one drawn from p itself."""
    rest = torch.stack([torch.multinomial(row, len(output), replacement=True) for row in p], dim=1)
    return torch.where(output < 0, rest, output.long()).numpy()


@pytest.mark.parametrize("with_q", [True, False], ids=["q", "one-hot"])
@pytest.mark.parametrize("padded_share", [0.0, 0.5])
def test_the_output_follows_the_target_and_acceptance_is_the_overlap(with_q: bool, padded_share: float) -> None:
    """Joint law of four tokens; a bias of TV 0.05 of the joint is seen with power 0.9."""
    torch.manual_seed(0)
    p, q = tables(seed=1)
    drafts = torch.stack([torch.multinomial(row, REQUESTS, replacement=True) for row in q], dim=1)
    padded = torch.rand(REQUESTS) < padded_share
    drafts[padded] = -1
    probs = q.repeat(REQUESTS, 1)
    probs[padded.repeat_interleave(K)] = 0
    output = ours(
        drafts.flatten().int(),
        [K] * REQUESTS,
        K,
        torch.arange(K, K * REQUESTS + 1, K, dtype=torch.int32),
        probs if with_q else None,
        p[:K].log().repeat(REQUESTS, 1),
        torch.multinomial(p[K], REQUESTS, replacement=True)[:, None],
        metadata([1.0] * REQUESTS),
    )
    law = torch.einsum("a,b,c,d->abcd", *p.double()).numpy()
    found = fit(law, continued(output, p), ALPHA)
    print(found)
    assert output.dtype == torch.int32
    assert found.detectable < 0.05
    assert found.p > ALPHA
    accepted = (output >= 0).sum(1) - 1
    assert (accepted[padded] == 0).all()
    chance = float((torch.minimum(p[:K], q) if with_q else p[:K] * q).sum(-1)[0])
    first = accepted[~padded] >= 1
    assert abs(float(first.float().mean()) - chance) < 6 * 0.5 / len(first) ** 0.5


def test_requests_with_fewer_drafts_without_drafts_and_greedy_ones_keep_their_rows() -> None:
    """p is one-hot here, so that the only right answer is known; the bonus token of request r is 10 + r."""
    best = torch.tensor([4, 5, 1, 2, 3, 0])  # argmax of p at the six draft rows
    logits = torch.full((6, VOCAB), -1e9).scatter_(1, best[:, None], 0.0)
    output = ours(
        torch.tensor([4, 5, 1, 5, 3, -1], dtype=torch.int32),
        [2, 0, 3, 1],
        3,
        torch.tensor([2, 2, 5, 6], dtype=torch.int32),
        None,
        logits,
        torch.tensor([[10], [11], [12], [13]]),
        metadata([1.0, 1.0, 0.0, 0.0]),
    )
    assert output.tolist() == [[4, 5, 10, -1], [11, -1, -1, -1], [1, 2, -1, -1], [0, -1, -1, -1]]


def test_methods_that_are_not_lossless_are_refused() -> None:
    one = torch.ones(1, dtype=torch.int32)
    for option in ({"synthetic_mode": True}, {"fly_window_size": 4}):
        with pytest.raises(NotImplementedError, match="do not exist on the CPU"):
            ours(one, [1], 1, one, None, torch.zeros(1, 2), one[:, None], metadata([1.0]), **option)


def padded(sample: Any, with_q: bool, requests: int = 400) -> int:
    """Number of requests, all of their drafts being padding, in which a draft counts as accepted."""
    torch.manual_seed(0)
    p, q = tables(seed=1)
    output = sample(
        torch.full((K * requests,), -1, dtype=torch.int32),
        [K] * requests,
        K,
        torch.arange(K, K * requests + 1, K, dtype=torch.int32),
        q.repeat(requests, 1) if with_q else None,
        p[:K].log().repeat(requests, 1),
        torch.zeros(requests, 1, dtype=torch.long),
        metadata([1.0] * requests),
    )
    return int((output[:, 1:] != -1).any(1).sum())


def test_padding_is_never_accepted() -> None:
    assert padded(ours, with_q=False) == padded(ours, with_q=True) == 0


@pytest.mark.slow
def test_the_stock_cpu_kernels_accept_padding() -> None:
    """Mended upstream when this fails: then the row can go."""
    environment = os.environ | {"SPECEVAL_PATCHES": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", STOCK], env=environment, capture_output=True, text=True, check=True)
    accepted = json.loads(run.stdout.splitlines()[-1])
    print(accepted)
    assert max(accepted) > 0
