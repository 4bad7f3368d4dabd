"""Verify steps of both runners without an engine, and how what was recorded of them is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vllm_patches.patches import cpu_rejection

V1_NAMES = ["a-11111111", "b-22222222", "c-33333333"]
V1_COUNTS = (2, 0, 3)


def unpacked(drained: dict[str, Any], kinds: int = 2) -> np.ndarray:
    return np.frombuffer(drained["values"], np.float32).reshape(kinds, -1)


def laws(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def v1_runner() -> SimpleNamespace:
    """As much of a V1 model runner as is read."""
    batch = SimpleNamespace(req_ids=[*V1_NAMES, "not in this step"])
    return SimpleNamespace(input_batch=batch, vllm_config=SimpleNamespace(use_v2_model_runner=False))


def v2_runner() -> SimpleNamespace:
    return SimpleNamespace(vllm_config=SimpleNamespace(use_v2_model_runner=True))


def v1_verifier() -> Any:
    """V1's `rejection_sample` in plain torch."""
    return cpu_rejection.replace(SimpleNamespace(__globals__={"generate_uniform_probs": uniforms}))  # type: ignore[arg-type]


def uniforms(count: int, counts: list[int], generators: dict[int, Any], device: Any) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64)


def v1_arguments(temperature: list[float]) -> tuple[Any, ...]:
    heat = torch.tensor(temperature)
    greedy = heat == 0
    sampling = SimpleNamespace(
        temperature=heat, all_greedy=bool(greedy.all()), all_random=not greedy.any(), generators={}
    )
    drafts, q = torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32), laws((5, 7), 5).softmax(-1)
    cumulative = torch.tensor(V1_COUNTS).cumsum(0)
    return drafts, list(V1_COUNTS), 3, cumulative, q, laws((5, 7), 4), torch.zeros(3, 1).int(), sampling


class Batch:
    """A verify step of V2: requests in the order of the batch, at shuffled places of the request states."""

    def __init__(self, counts: list[int], seed: int, k: int = 3, vocabulary: int = 6, slots: int = 8) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.counts, self.k = counts, k
        self.num_reqs = len(counts)
        self.idx_mapping = torch.randperm(slots, generator=generator)[: len(counts)].int()
        self.idx_mapping_np = self.idx_mapping.numpy()
        self.req_ids = [f"r{slot}" for slot in self.idx_mapping.tolist()]
        starts = [0, *np.cumsum([count + 1 for count in counts]).tolist()]
        self.cu_num_logits = torch.tensor(starts, dtype=torch.int32)
        self.cu_num_logits_np = np.array(starts, np.int32)
        rows = starts[-1]
        self.expanded_idx_mapping = self.idx_mapping.repeat_interleave(torch.tensor(counts) + 1)
        self.expanded_local_pos = torch.cat([torch.arange(count + 1) for count in counts]).int()
        self.seq_lens_cpu_upper_bound = torch.full((len(counts),), 9)
        self.seq_lens = self.input_ids = self.positions = self.logits_indices = None
        self.logits = laws((rows, vocabulary), seed + 1)
        self.q_logits = laws((slots, k, vocabulary), seed + 2)
        self.tokens = torch.randint(0, vocabulary, (rows,), generator=generator)
        self.temperature = torch.rand(slots, generator=generator) + 0.5

    @property
    def drafting(self) -> list[str]:
        """Names of the requests that have drafts."""
        return [name for name, count in zip(self.req_ids, self.counts, strict=True) if count]

    def expected(self, with_q: bool = True) -> list[list[float]]:
        """r and alpha, draft by draft, from the description of the layout alone."""
        ratios, overlaps, row = [], [], 0
        for slot, count in zip(self.idx_mapping.tolist(), self.counts, strict=True):
            for j in range(count):
                heat, token = float(self.temperature[slot]), int(self.tokens[row + j + 1])
                p = self.logits[row + j].double().softmax(-1)  # V2's target logits are past temperature
                q = torch.zeros(len(p)).double()
                q[token] = 1
                if with_q and heat > 0:
                    q = (self.q_logits[slot, j].double() / heat).softmax(-1)
                sound = heat > 0 and token >= 0
                ratios.append(min(1.0, float(p[token] / q[token])) if sound else np.nan)
                overlaps.append(float(torch.minimum(p, q).sum()) if sound else np.nan)
            row += count + 1
        return [ratios, overlaps]
