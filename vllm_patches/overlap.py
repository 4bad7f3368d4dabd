"""Records r_j = min(1, p_j(d_j)/q_j(d_j)) and alpha_j = sum_x min(p_j, q_j) of every sampled draft token.

Both come from the verifier's own tensors, for every drafting method: V1's `rejection_sample` (vllm/v1/sample/
rejection_sampler.py) and V2's (vllm/v1/worker/gpu/spec_decode/rejection_sampler.py) are wrapped in the worker process,
only once `vllm_patches.worker` is told to. Recording draws no random number: the tokens stay what they are. What is
recorded waits, on the device, until it is drained; no more than `MOST_STEPS` engine steps are kept.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from vllm_patches import v1_draft_sampling

MOST_STEPS = 4096
"""Engine steps kept between two drains; older ones are dropped, and their requests come back incomplete."""
MOST_ELEMENTS = 1 << 26
"""Entries of p that are worked on at once: bounds the memory that recording needs beside the verifier's."""
GREEDY_BELOW = 1e-5
"""Temperature below which vLLM takes the argmax (`_SAMPLING_EPS` in v1/sample/sampler.py)."""
MARK = "__overlap_recorded__"
"""Attribute of a wrapper that holds what it wraps."""
WRAPPED = (
    ("vllm.v1.sample.rejection_sampler", "rejection_sample"),
    ("vllm.v1.worker.gpu.spec_decode.rejection_sampler", "rejection_sample"),
    ("vllm.v1.worker.gpu.spec_decode.rejection_sampler", "RejectionSampler.__call__"),
)


class Recorder:
    """Values of verify steps until they are drained."""

    def __init__(self) -> None:
        self._steps: list[tuple[list[str], list[int], Tensor]] = []

    def add(self, names: list[str], counts: list[int], values: Tensor) -> None:
        """One engine step: its requests, drafts of each, and their values [2, sum(counts)]; NaN: nothing to record."""
        self._steps.append((names, counts, values))
        if len(self._steps) > MOST_STEPS:
            del self._steps[0]

    def drain(self) -> dict[str, Any]:
        """All since the last call: `requests` and `counts` in order, `values` as float32 bytes [2, sum(counts)]."""
        steps, self._steps = self._steps, []
        values = torch.cat([step[2] for step in steps], dim=1) if steps else torch.zeros(2, 0)
        return {
            "requests": [name for step in steps for name in step[0]],
            "counts": [count for step in steps for count in step[1]],
            "values": values.float().cpu().numpy().tobytes(),
        }


def start(runner: Any) -> Recorder:
    """Record the verify steps of a worker's model runner, V1 or V2, from now on."""
    recorder = Recorder()
    if runner.vllm_config.use_v2_model_runner:
        _wrap_v2(runner, recorder)
    else:
        _wrap_v1(runner, recorder)
    return recorder


def stop() -> None:
    """Put this process's verifiers back as they were; replay (`vllm_patches.replay`) ends as well."""
    v1_draft_sampling.choose = None
    for module, path in WRAPPED:
        owner: Any = sys.modules.get(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent, None)
        live = getattr(owner, name, None)
        if hasattr(live, MARK):
            setattr(owner, name, getattr(live, MARK))


def measure(drafts: Tensor, p: Tensor, q: Tensor | None) -> Tensor:
    """r and alpha [2, R] of drafts [R] under p [R, V] and q [R, V]; q None is the point mass on the draft.

    NaN for drafts that were none (id -1).
    """
    token = drafts.clamp(min=0).long()[:, None]
    at_draft = p.gather(1, token)[:, 0]
    if q is None:
        values = torch.stack([at_draft, at_draft])
    else:
        ratio = (at_draft / q.gather(1, token)[:, 0]).clamp(max=1).nan_to_num(0)
        values = torch.stack([ratio, torch.minimum(p, q).sum(-1)])
    return values.masked_fill(drafts < 0, torch.nan)


def measure_logits(drafts: Tensor, logits: Tensor, q: Tensor | None) -> Tensor:
    """`measure` with p = softmax(logits) [R, V], a bounded number of rows at a time."""
    rows = max(1, MOST_ELEMENTS // logits.shape[-1])
    parts = [
        measure(
            drafts[start : start + rows],
            logits[start : start + rows].softmax(-1, dtype=torch.float32),
            None if q is None else q[start : start + rows],
        )
        for start in range(0, len(drafts), rows)
    ]
    return torch.cat(parts, dim=1) if parts else logits.new_zeros(2, 0)


def _wrap_v1(runner: Any, recorder: Recorder) -> None:
    from vllm.v1.sample import rejection_sampler

    verifier = getattr(rejection_sampler.rejection_sample, MARK, rejection_sampler.rejection_sample)

    @wraps(verifier)
    def rejection_sample(*args: Any, **kwargs: Any) -> Any:
        drafts, counts, _, _, q, logits, _, sampling = args[:8]
        if not sampling.all_greedy:
            values = measure_logits(drafts, logits, q)  # before the call: the verifier may work in place
            if not sampling.all_random:
                each = torch.tensor(counts, device=values.device)
                greedy = (sampling.temperature < GREEDY_BELOW).repeat_interleave(each)
                values = values.masked_fill(greedy, torch.nan)
            recorder.add(runner.input_batch.req_ids[: len(counts)].copy(), list(counts), values)
        return verifier(*args, **kwargs)

    setattr(rejection_sample, MARK, verifier)
    rejection_sampler.rejection_sample = rejection_sample


def _wrap_v2(runner: Any, recorder: Recorder) -> None:
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    verifier = getattr(rejection_sampler.rejection_sample, MARK, rejection_sampler.rejection_sample)
    call = rejection_sampler.RejectionSampler.__call__
    call = getattr(call, MARK, call)
    names: dict[int, str] = {}  # of the requests in the batch, by their place in vLLM's request states

    @wraps(call)
    def named(self: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        names.clear()
        names.update(zip(input_batch.idx_mapping_np.tolist(), input_batch.req_ids, strict=False))
        return call(self, logits, input_batch, *args, **kwargs)

    @wraps(verifier)
    def rejection_sample(logits: Tensor, q_logits: Tensor | None, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        starts, _, slots, _, _, temperature = args[:6]
        values, counts = measure_v2(logits, q_logits, tokens, starts, slots, temperature)
        recorder.add([names[slot] for slot in slots.tolist()], counts, values)
        return verifier(logits, q_logits, tokens, *args, **kwargs)

    setattr(rejection_sample, MARK, verifier)
    setattr(named, MARK, call)
    rejection_sampler.rejection_sample = rejection_sample
    rejection_sampler.RejectionSampler.__call__ = named


def measure_v2(
    logits: Tensor, q_logits: Tensor | None, tokens: Tensor, starts: Tensor, slots: Tensor, temperature: Tensor
) -> tuple[Tensor, list[int]]:
    """r and alpha [2, R] and the draft counts [B] of one call of V2's verifier, from its own arguments.

    `logits` [N, V] are the target's, row `starts[b] + j` for draft j + 1 of request b, a request's last row for its
    bonus token; `tokens` [N] holds that draft one row further on. `q_logits` [slots, K, V], before temperature, and
    `temperature` [slots] are indexed by `slots` [B].
    """
    counts = (starts[1:] - starts[:-1] - 1).long()
    owner = torch.repeat_interleave(counts)
    place = torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]
    row = starts[:-1].long()[owner] + place
    slot = slots.long()[owner]
    heat = temperature[slot]
    q = None
    if q_logits is not None:
        q = (q_logits[slot, place].float() / heat.clamp(min=GREEDY_BELOW)[:, None]).softmax(-1)
        q = q[:, : logits.shape[-1]]
    values = measure_logits(tokens[row + 1], logits[row], q)
    return values.masked_fill(heat < GREEDY_BELOW, torch.nan), counts.tolist()
