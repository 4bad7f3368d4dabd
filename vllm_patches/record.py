"""Records what the verifier saw: p, q and its decision on every draft token. Off until a worker is told to start.

    llm.collective_rpc(record.start); llm.generate(...); rows = llm.collective_rpc(record.drain)[0]

Only the V1 runner is recorded: its verifier is `vllm.v1.sample.rejection_sampler.rejection_sample`. A worker takes
these functions if the engine runs in the caller's process (VLLM_ENABLE_V1_MULTIPROCESSING=0).
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

COLUMNS = (
    *("request", "position", "reached", "accepted", "ratio", "alpha", "spread", "favoured", "favoured_mass"),
    *("pull", "pull_mean", "pull_spread"),
)
"""One entry for each draft token of a sampled request; see `Recorder.add` and `measure_rows`."""
ORIGINAL = "__recorded__"
"""Attribute of the recording verifier that holds the one it calls."""


def start(worker: Any) -> bool:
    """Record from now on. False if this worker's verifier cannot be recorded."""
    from vllm.v1.sample import rejection_sampler

    runner = worker.model_runner
    if type(getattr(runner, "rejection_sampler", None)) is not rejection_sampler.RejectionSampler:
        return False
    stop(worker)
    worker.speceval_recorder = Recorder(runner)
    rejection_sampler.rejection_sample = worker.speceval_recorder.wrap(rejection_sampler.rejection_sample)
    return True


def stop(worker: Any) -> None:
    """Put the verifier back as it was."""
    from vllm.v1.sample import rejection_sampler

    live: Any = rejection_sampler.rejection_sample
    rejection_sampler.rejection_sample = getattr(live, ORIGINAL, live)


def drain(worker: Any) -> dict[str, Any]:
    """What was recorded since the last call: COLUMNS as arrays, and counts of what is not among them.

    `padded`: drafts that were none (id -1); `broken`: rows whose p is no distribution; `without_q`: rows of steps that
    were verified as if q were the point mass on the draft.
    """
    recorded: dict[str, Any] = worker.speceval_recorder.drain()
    return recorded


class Recorder:
    """Keeps the rows of verify steps until they are drained."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._clear()

    def _clear(self) -> None:
        self._steps: list[dict[str, np.ndarray]] = []
        self._padded = self._broken = self._without_q = 0

    def wrap(self, verifier: Any) -> Any:
        """The verifier with recording; a patch's mark on it stays visible."""

        @wraps(verifier)
        def rejection_sample(*args: Any, **kwargs: Any) -> Any:
            drafts, counts, _, _, q, logits, _, sampling = args[:8]
            if sampling.all_greedy:
                return verifier(*args, **kwargs)
            p = logits.softmax(-1, dtype=torch.float32)  # before the call: the verifier may work in place
            output = verifier(*args, **kwargs)
            self.add(self._runner.input_batch.req_ids, drafts, counts, p, q, output, sampling.temperature)
            return output

        setattr(rejection_sample, ORIGINAL, verifier)
        return rejection_sample

    def add(
        self,
        names: list[str],
        drafts: Tensor,
        each: list[int],
        p: Tensor,
        q: Tensor | None,
        output: Tensor,
        t: Tensor,
    ) -> None:
        """One verify step: names and draft counts (`each`) [B], drafts [R], p, q [R, V], output [B, K + 1], T [B].

        `position` counts from 1; `reached`: every earlier draft of the step was accepted.
        """
        counts = torch.tensor(each)
        owner = torch.repeat_interleave(counts)
        place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
        on_device = owner.to(p.device)
        rows = measure_rows(drafts, p, q, output[on_device, place.to(p.device)])
        sampled, real, sound = t[on_device] > 1e-5, drafts >= 0, torch.isfinite(p.sum(-1))
        emitted = (output >= 0).sum(-1).cpu()[owner]
        keep = (sampled & real & sound).cpu()
        self._padded += int((sampled & ~real).sum())
        self._broken += int((sampled & real & ~sound).sum())
        self._without_q += int(keep.sum()) if q is None else 0
        rows |= {"position": place + 1, "reached": emitted > place, "accepted": emitted > place + 1}
        step = {name: column.cpu()[keep].numpy() for name, column in rows.items()}
        self._steps.append(step | {"request": np.array(names[: len(each)])[owner[keep].numpy()]})

    def drain(self) -> dict[str, Any]:
        """See the function `drain`."""
        found: dict[str, Any] = {
            name: np.concatenate([step[name] for step in self._steps]) if self._steps else np.zeros(0)
            for name in COLUMNS
        }
        found |= {"padded": self._padded, "broken": self._broken, "without_q": self._without_q}
        self._clear()
        return found


def measure_rows(drafts: Tensor, p: Tensor, q: Tensor | None, emitted: Tensor) -> dict[str, Tensor]:
    """What each row says about the draft d and the token emitted in its place, tensors [R].

    ratio = min(1, p(d)/q(d)), the chance to accept this draft; alpha = sum_x min(p, q), its mean over d ~ q, and
    spread its variance; favoured: the emitted token has q > p; favoured_mass = p's mass of all such tokens. pull =
    q/p at the emitted token if p > q there, else 0, with its mean and variance over the residual max(0, p - q), which
    a token that replaces a rejected draft follows. q None stands for the point mass on d. (Leviathan et al. 2023,
    arXiv 2211.17192, section 3.)
    """
    token = drafts.clamp(min=0).long()[:, None]
    at_draft = p.gather(1, token)[:, 0]
    if q is None:
        same, none = emitted == drafts, torch.zeros_like(at_draft)
        certain = {"ratio": at_draft, "alpha": at_draft, "spread": none, "favoured": same, "favoured_mass": at_draft}
        return certain | {"pull": none, "pull_mean": none, "pull_spread": none}
    least, above = torch.minimum(p, q), q > p
    alpha = least.sum(-1)
    second = torch.where(above, p * p / q, q).sum(-1)
    out = emitted.clamp(min=0).long()[:, None]
    residual, pull = (p - q).clamp(min=0), torch.where(p > q, q / p, 0)
    mass = residual.sum(-1).clamp(min=1e-9)
    mean = (residual * pull).sum(-1) / mass
    return {
        "ratio": (at_draft / q.gather(1, token)[:, 0]).clamp(max=1).nan_to_num(0),
        "alpha": alpha,
        "spread": (second - alpha**2).clamp(min=0),
        "favoured": above.gather(1, out)[:, 0],
        "favoured_mass": (p * above).sum(-1),
        "pull": pull.gather(1, out)[:, 0],
        "pull_mean": mean,
        "pull_spread": ((residual * pull**2).sum(-1) / mass - mean**2).clamp(min=0),
    }
