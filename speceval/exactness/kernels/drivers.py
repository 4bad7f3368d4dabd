"""Drives the sampling code of vLLM's two model runners on the toy, as the runners do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speceval.exactness.kernels import load
from speceval.exactness.kernels.load import Missing, pick
from speceval.exactness.kernels.sources import Source
from speceval.exactness.kernels.toy import VOCABULARY, Ints, K, Round, Toy


class V1Driver:
    """The proposer's sampler, then `expand_batch_to_tokens` and `rejection_sample` of `v1/sample`."""

    def __init__(
        self, source: Source, rejection: ModuleType, toy: Toy, drafting: str, device: str, patched: bool = False
    ) -> None:
        self.rejection, self.toy, self.device = rejection, toy, device
        self.probabilistic = drafting == "probabilistic"
        self.target = torch.from_numpy(toy.target_logits).to(device)
        self.drafter = torch.from_numpy(toy.draft_logits).to(device)
        names: dict[str, Any] = {"torch": torch, "_SAMPLING_EPS": 1e-5}
        if self.probabilistic and patched:
            from vllm_patches.patches.v1_draft_sampling import sample

            self.sample_draft = lambda logits, metadata: sample(logits, metadata)
        elif self.probabilistic:
            for helper in ("empty_exponential_noise_like", "sample_with_exponential_noise"):
                pick(source, load.V1_NOISE, helper, names)
            self.sample_draft = pick(source, load.V1_PROPOSER, "compute_probs_and_sample_next_token", names)
        self.q: list[torch.Tensor] = []

    def start(self, seeds: Ints, temperature: NDArray[np.float32]) -> None:
        """V1 draws unseeded requests from torch's global generator."""
        torch.manual_seed(int(seeds[0]))

    def draft(self, batch: Round, previous: Ints, step: int) -> Ints:
        logits = self.drafter[torch.from_numpy(previous).to(self.device)]
        if not self.probabilistic:
            return logits.argmax(-1).cpu().numpy()
        tokens, q = self.sample_draft(logits, self._metadata(batch))
        self.q = [*self.q[:step], q]
        return tokens.cpu().numpy()

    def verify(self, batch: Round, drafts: Ints) -> Ints:
        row = np.repeat(np.arange(len(batch.drafted)), batch.drafted)
        column = np.concatenate([np.arange(k) for k in batch.drafted])
        before = np.column_stack([batch.last, drafts])
        count = torch.from_numpy(batch.drafted.cumsum()).to(torch.int32).to(self.device)
        metadata = self._metadata(batch)
        temperature = self.rejection.expand_batch_to_tokens(metadata.temperature, count, len(row), 0, 1)
        logits = self.target[torch.from_numpy(np.maximum(before[row, column], 0)).to(self.device)]
        q = torch.stack(self.q, 1)[row, column].contiguous() if self.probabilistic else None
        after_all = np.maximum(before[np.arange(len(drafts)), batch.drafted], 0)
        emitted = self.rejection.rejection_sample(
            torch.from_numpy(drafts[row, column]).to(torch.int32).to(self.device),
            batch.drafted.tolist(),
            K,
            count,
            q,
            logits / temperature.unsqueeze(-1),
            self._bonus(batch, after_all),
            metadata,
        )
        return _left(emitted.cpu().numpy().astype(np.int64))

    def _metadata(self, batch: Round) -> Any:
        temperature = torch.from_numpy(batch.temperature).to(self.device)
        greedy = bool((batch.temperature == 0).all())
        random = bool((batch.temperature > 0).all())
        return SimpleNamespace(
            all_greedy=greedy, all_random=random, temperature=temperature, top_k=None, top_p=None, generators={}
        )

    def _bonus(self, batch: Round, previous: Ints) -> torch.Tensor:
        """Bonus tokens come from vLLM's ordinary sampler, which is not under test: drawn here, as it draws them."""
        logits = self.target[torch.from_numpy(previous).to(self.device)]
        temperature = torch.from_numpy(batch.temperature).to(self.device).unsqueeze(-1)
        p = torch.softmax(logits / torch.where(temperature > 0, temperature, 1.0), -1)
        drawn = (p / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True)
        return torch.where(temperature > 0, drawn, logits.argmax(-1, keepdim=True)).contiguous()


class V2Driver:
    """`v1/worker/gpu`: the speculator's `sample_draft` and `rejection_sample`."""

    def __init__(
        self, source: Source, modules: dict[str, ModuleType], toy: Toy, drafting: str, block: bool, device: str
    ) -> None:
        gumbel, rejection = load.require(modules, load.V2_GUMBEL), load.require(modules, load.V2_REJECTION)
        self.toy, self.device = toy, device
        self.probabilistic = drafting == "probabilistic"
        self.target = torch.from_numpy(toy.target_logits).to(device)
        self.drafter = torch.from_numpy(toy.draft_logits).to(device)
        self.rejection_sample = rejection.rejection_sample
        self.options = {"use_block_verification": True} if block else {}
        if block and "use_block_verification" not in inspect.signature(self.rejection_sample).parameters:
            raise Missing("this version has no block verification")
        self.speculator = Speculator(source, gumbel.gumbel_sample)
        parameters = inspect.signature(self.speculator.sample_draft).parameters
        # Until 0.28 the caller passes the drafter's position, one below the verifier's, and sample_draft adds one.
        self.shift = 0 if "sample_src_positions" in parameters else -1

    def start(self, seeds: Ints, temperature: NDArray[np.float32]) -> None:
        self.seeds = torch.from_numpy(seeds).to(self.device)
        self.temperature = torch.from_numpy(temperature).to(self.device)
        self.draft_logits = torch.zeros(len(seeds), K, VOCABULARY, device=self.device) if self.probabilistic else None

    def draft(self, batch: Round, previous: Ints, step: int) -> Ints:
        tokens = self.speculator.sample_draft(
            self.drafter[self._send(previous)],
            self._send(batch.position + step + self.shift),
            self._send(batch.slots).to(torch.int32),
            self.temperature,
            self.seeds,
            torch.tensor(step, device=self.device),
            self.draft_logits,
        )
        return tokens.cpu().numpy()

    def verify(self, batch: Round, drafts: Ints) -> Ints:
        count = batch.drafted + 1
        row = np.repeat(np.arange(len(count)), count)
        column = np.concatenate([np.arange(c) for c in count])
        tokens = np.column_stack([batch.last, drafts])[row, column]
        divisor = np.where(batch.temperature > 0, batch.temperature, 1).astype(np.float32)[row]
        logits = self.target[self._send(np.maximum(tokens, 0))] / self._send(divisor).unsqueeze(-1)
        slots = self._send(batch.slots).to(torch.int32)
        emitted, number = self.rejection_sample(
            logits,
            self.draft_logits,
            self._send(tokens),
            self._send(np.concatenate([[0], count.cumsum()])).to(torch.int32),
            self._send(batch.position[row] + column),
            slots,
            slots[self._send(row)],
            self._send(column).to(torch.int32),
            self.temperature,
            self.seeds,
            K,
            **self.options,
        )
        kept = np.arange(K + 1) < number.cpu().numpy()[:, None]
        return np.where(kept, emitted.cpu().numpy(), -1)

    def _send(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


class Speculator:
    """Just enough of `DraftModelSpeculator` for its `sample_draft`, whose logits are what it is given."""

    use_fp64_gumbel = False
    use_local_argmax_reduction = False
    draft_watermarker = None
    acceptance_estimator = None

    def __init__(self, source: Source, gumbel_sample: Callable[..., torch.Tensor]) -> None:
        from functools import partial

        self.model = SimpleNamespace(compute_logits=lambda hidden, *rest: hidden)
        self._source = source
        self._names = {"torch": torch, "gumbel_sample": gumbel_sample, "partial": partial}

    def __getattr__(self, name: str) -> Any:
        """Any other method is the version's own, taken from its file when it is first called."""
        if name.startswith("__"):
            raise AttributeError(name)
        method = pick(self._source, load.V2_SPECULATOR, f"DraftModelSpeculator.{name}", self._names)
        bound = method.__get__(self)
        setattr(self, name, bound)
        return bound


def _left(tokens: Ints) -> Ints:
    """Each row's tokens without the -1 between them, as the engine reads the row."""
    order = np.argsort(tokens < 0, axis=1, kind="stable")
    return np.take_along_axis(tokens, order, axis=1)
