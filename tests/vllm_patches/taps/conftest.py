"""vLLM's verifiers with stand-ins in torch, and a tap that no test leaves open."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stand_ins import Batch, v1_verifier

from vllm_patches.taps.tap import TAP


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    TAP.clear()


@pytest.fixture
def v1(monkeypatch: pytest.MonkeyPatch) -> Any:
    """V1's module with a verifier in plain torch."""
    from vllm.v1.sample import rejection_sampler

    monkeypatch.setattr(rejection_sampler, "rejection_sample", v1_verifier())
    return rejection_sampler


@pytest.fixture
def v2(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's own `RejectionSampler` of the V2 runner around a verifier in torch (its kernels need a GPU).

    `batch` is what `made` is given to verify; `calls` has the rows, the starts and the result of each call.
    """
    module = pytest.importorskip("vllm.v1.worker.gpu.spec_decode.rejection_sampler")
    batch, calls = Batch([3, 0, 1, 2, 3, 1], seed=21), []

    def verify(logits: torch.Tensor, q: Any, tokens: torch.Tensor, starts: torch.Tensor, *_: Any, **__: Any) -> Any:
        count = len(starts) - 1
        sampled = torch.randint(0, logits.shape[-1], (count, batch.k + 1))
        number = (torch.rand(count) * (starts[1:] - starts[:-1])).int() + 1
        calls.append((len(logits), starts.tolist(), sampled, number))
        return sampled, number

    monkeypatch.setattr(module, "rejection_sample", verify)
    monkeypatch.setattr(module.RejectionSampler, "__call__", module.RejectionSampler.__call__)
    monkeypatch.setattr(module, "gather_draft_sampled", lambda *_: (batch.tokens, batch.tokens))
    monkeypatch.setattr(module, "get_num_sampled_and_rejected", lambda sampled, *_: (sampled, None))
    states = SimpleNamespace(
        temperature=SimpleNamespace(gpu=batch.temperature, np=batch.temperature.numpy()),
        seeds=SimpleNamespace(gpu=None),
        max_num_logprobs=lambda _: -1,
    )
    made = module.RejectionSampler.__new__(module.RejectionSampler)
    made.sampler = SimpleNamespace(
        compute_nans=False,
        logprobs_mode="raw_logprobs",
        return_sampling_mask=False,
        use_fp64_gumbel=False,
        sampling_states=states,
        req_states=SimpleNamespace(prefill_len=SimpleNamespace(gpu=None)),
        apply_sampling_params=lambda logits, *_: logits,
    )
    made.enable_adaptive_verification = made.use_block_verification = False
    made.num_speculative_steps, made.synthetic_conditional_rates, made.watermark_key = batch.k, None, None
    return SimpleNamespace(module=module, made=made, batch=batch, calls=calls)
