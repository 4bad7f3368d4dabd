"""An engine with a known answer: every draft position is accepted with a given probability, no model is run.

For tests of everything around an engine: the store, resumption, the estimators.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from speceval.engines.base import Counters, Finished, Sampling, Step
from speceval.store.schema import Facts
from vllm_patches import PatchStatus


class Characters:
    """A tokenizer of one token per character, with the plainest chat template."""

    chat_template = "simulated"

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        """One line per message."""
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    def encode(self, text: str, **_: Any) -> list[int]:
        """Code points."""
        return [ord(character) for character in text]

    def decode(self, token_ids: list[int], **_: Any) -> str:
        """Characters."""
        return "".join(map(chr, token_ids))


@dataclass
class SimulatedEngine:
    """Accepts draft position j, once it is reached, with probability `conditional[j-1]`.

    That probability is the mean of r_j, which takes two values, and it is the alpha_j that is recorded.
    `end`: chance that a committed token ends its request. Deterministic given each request's seed.
    """

    conditional: tuple[float, ...]
    end: float = 0.02
    batch: int = 8
    max_model_len: int = 1 << 20
    tokenizer: Any = field(default_factory=Characters)
    _waiting: list[tuple[str, Sampling]] = field(default_factory=list)
    _running: dict[str, _Request] = field(default_factory=dict)
    _counters: Counters = field(init=False)

    def __post_init__(self) -> None:
        self._counters = Counters(num_accepted_tokens_per_pos=[0] * len(self.conditional))

    def facts(self) -> Facts:
        """What a real engine would tell of itself, as far as there is something to tell."""
        return Facts(
            vllm=None,
            torch=None,
            device="simulated",
            runner="simulated",
            method="simulated",
            k=len(self.conditional),
            draft_sample_method="probabilistic",
            rejection_sample_method="standard",
            draft_truncation=True,
            dtype=None,
            quantization=None,
            kv_cache_dtype=None,
            max_model_len=self.max_model_len,
            max_num_seqs=self.batch,
            max_num_batched_tokens=None,
            async_scheduling=False,
            prefix_caching=False,
            enforce_eager=None,
            generation_config="vllm",
            tensor_parallel=1,
            pipeline_parallel=1,
            data_parallel=1,
        )

    def patches(self) -> list[PatchStatus]:
        """None."""
        return []

    def warm_up(self) -> None:
        """Nothing to warm."""

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a request."""
        self._waiting.append((request_id, sampling))

    def step(self) -> tuple[int, list[Finished]]:
        """Advance every running request by one verify step."""
        while self._waiting and len(self._running) < self.batch:
            name, sampling = self._waiting.pop(0)
            self._running[name] = _Request(sampling, random.Random(f"{name} {sampling.seed}"))
        committed, finished = 0, []
        for name, request in list(self._running.items()):
            committed += request.advance(self.conditional, self.end, self._counters)
            if request.finish_reason:
                del self._running[name]
                finished.append(
                    Finished(
                        name,
                        request.tokens,
                        request.finish_reason,
                        None,
                        request.steps,
                        cached_tokens=0,
                        recorded=request.recorded(self.conditional),
                    )
                )
        return committed, finished

    def in_flight(self) -> list[list[int]]:
        """Commits of the running requests."""
        running = (request for request in self._running.values() if request.tokens)
        return [[1, *(step.committed for step in request.steps)] for request in running]

    def counters(self) -> Counters:
        """Totals so far."""
        return Counters(
            self._counters.num_drafts,
            self._counters.num_draft_tokens,
            self._counters.num_accepted_tokens,
            list(self._counters.num_accepted_tokens_per_pos),
        )


@dataclass
class _Request:
    sampling: Sampling
    chance: random.Random
    tokens: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    ratios: list[list[float]] = field(default_factory=list)
    finish_reason: str = ""

    def advance(self, conditional: tuple[float, ...], end: float, counters: Counters) -> int:
        """The prefill's token first, then a verify step at a time; returns the committed tokens."""
        if not self.tokens:
            return self._commit(1, end)
        accepted = 0
        ratios = [rate + self.chance.choice((-1, 1)) * min(rate, 1 - rate) for rate in conditional]
        self.ratios.append(ratios)
        while accepted < len(conditional) and self.chance.random() < ratios[accepted]:
            counters.num_accepted_tokens_per_pos[accepted] += 1
            accepted += 1
        counters.num_drafts += 1
        counters.num_draft_tokens += len(conditional)
        counters.num_accepted_tokens += accepted
        committed = self._commit(1 + accepted, end)
        self.steps.append(Step(len(conditional), accepted, committed))
        return committed

    def recorded(self, conditional: tuple[float, ...]) -> np.ndarray | None:
        """r and alpha of every step; None for greedy requests, as in vLLM, and without steps."""
        if not self.ratios or self.sampling.temperature == 0:
            return None
        ratios = np.array(self.ratios, np.float32)
        return np.stack([ratios, np.broadcast_to(np.array(conditional, np.float32), ratios.shape)], axis=1)

    def _commit(self, emitted: int, end: float) -> int:
        for count in range(1, emitted + 1):
            self.tokens.append(self.chance.randrange(97, 123))
            if self.chance.random() < end:
                self.finish_reason = "stop"
            elif len(self.tokens) == self.sampling.max_tokens:
                self.finish_reason = "length"
            if self.finish_reason:
                return count
        return emitted
