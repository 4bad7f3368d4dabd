"""An engine with a known answer: every draft position is accepted with a given probability, no model is run.

For tests of everything around an engine, and to try a command without one: `speceval run --engine simulated`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from speceval.engines.base import Engine, Finished, Order, Sampling, Step, unknown
from speceval.errors import UserError
from speceval.store.schema import Counters, Facts

RATE = 0.7
"""At which every position is accepted unless the order says otherwise."""


LETTERS = range(97, 123)
"""What it says: code points."""


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
class SimulatedEngine(Engine):
    """Accepts draft position j, once it is reached, with probability `conditional[j-1]`.

    That probability is the mean of r_j, which takes two values, and it is the alpha_j that is recorded; a replayed text
    is emitted as it is, one token a step, and r_j is taken for kept_j. Its tokens are letters, each as likely.
    `end`: chance that a committed token ends its request. Deterministic given each request's name and seed.
    """

    loads_checkpoints = False

    conditional: tuple[float, ...]
    end: float = 0.02
    batch: int = 8
    max_model_len: int = 1 << 20
    record: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    """What its facts say of an order, none of which it needs to do anything for."""
    tokenizer: Any = field(default_factory=Characters)
    _waiting: list[tuple[str, Sampling]] = field(default_factory=list)
    _running: dict[str, _Request] = field(default_factory=dict)
    _counters: Counters = field(init=False)
    _closed: bool = False

    def __post_init__(self) -> None:
        self._counters = Counters(num_accepted_tokens_per_pos=[0] * len(self.conditional))

    @classmethod
    def open(cls, order: Order) -> SimulatedEngine:
        """One that accepts as `engine_args` say: `rates`, a number or one for each position, given the one before it;
        `end` and `max_model_len`. Raises `UserError`.
        """
        arguments = {"rates": RATE, "end": cls.end, "max_model_len": cls.max_model_len} | order.engine_args
        rates, end, max_model_len = (arguments.pop(name) for name in ("rates", "end", "max_model_len"))
        if arguments:
            raise UserError(f"--engine-arg {min(arguments)}: the simulated engine takes rates, end and max_model_len")
        if not isinstance(max_model_len, int) or max_model_len < 1:
            raise UserError(f"--engine-arg max_model_len={max_model_len}: a whole number from 1 on")
        conditional = _chances("rates", rates if isinstance(rates, list) else [rates] * order.k)
        if order.forced is not None:
            conditional = tuple(u / v if v else 0.0 for u, v in zip(order.forced, (1.0, *order.forced), strict=False))
        if order.draft is None:
            conditional = ()
        elif len(conditional) != order.k:
            raise UserError(f"--engine-arg rates={rates}: {len(conditional)} of them, K is {order.k}: one for each")
        (end,) = _chances("end", [end])
        return cls(conditional, end, order.batch, max_model_len, order.record or order.replay, _settings(order))

    @classmethod
    def swaps(cls, before: Order, after: Order) -> bool:
        """Drafters are all the same to it."""
        return before.like(after) and None not in (before.draft, after.draft)

    def swap(self, order: Order) -> bool:
        """Nothing has to change but what is recorded."""
        if self._closed or self._waiting or self._running:
            return False
        self.record, self.settings = order.record or order.replay, _settings(order)
        return True

    def facts(self) -> Facts:
        """What a real engine would tell of itself, as far as there is something to tell."""
        return unknown(
            **{
                "device": "simulated",
                "runner": "simulated",
                "method": "simulated",
                "k": len(self.conditional),
                "draft_sample_method": "probabilistic",
                "rejection_sample_method": "standard",
                "draft_truncation": True,
                "max_model_len": self.max_model_len,
                "max_num_seqs": self.batch,
                "async_scheduling": False,
                "prefix_caching": False,
                "generation_config": "vllm",
                "tensor_parallel": 1,
                "pipeline_parallel": 1,
                "data_parallel": 1,
            }
            | self.settings
        )

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a request."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        if len(prompt_token_ids) < self.shortest_prompt:
            raise UserError(f"a prompt of {len(prompt_token_ids)} tokens: at least {self.shortest_prompt} are needed")
        self._waiting.append((request_id, sampling))

    def close(self) -> None:
        """Forget every request."""
        self._closed = True
        self._waiting.clear()
        self._running.clear()

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
                        recorded=request.recorded(self.conditional) if self.record else None,
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


def _settings(order: Order) -> dict[str, Any]:
    """What the facts of an engine say of an order."""
    speculative = order.draft is not None
    return {
        "method": "simulated" if speculative else "none",
        "draft_sample_method": order.drafting if speculative and order.drafting != "deterministic" else None,
        "rejection_sample_method": order.rejection if speculative else None,
        "draft_truncation": order.draft_truncation,
        "prefix_caching": order.prefix_caching,
    }


def _chances(name: str, values: Sequence[Any]) -> tuple[float, ...]:
    """`values` if each is a probability. Raises `UserError`."""
    for value in values:
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"--engine-arg {name}: {value} is no chance: from 0 to 1")
    return tuple(map(float, values))


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
        if not conditional:
            self.steps.append(Step(0, 0, 1))
            return self._commit(1, end)
        accepted, replay = 0, self.sampling.replay
        ratios = [rate + self.chance.choice((-1, 1)) * min(rate, 1 - rate) for rate in conditional]
        if replay is not None:
            left = len(replay) - len(self.tokens)
            if self.sampling.temperature == 0:
                ratios = [float(self.chance.random() < rate) for rate in conditional]  # the text's token or another
            ratios[left:] = [np.nan] * (len(ratios) - left)
        self.ratios.append(ratios)
        while replay is None and accepted < len(conditional) and self.chance.random() < ratios[accepted]:
            counters.num_accepted_tokens_per_pos[accepted] += 1
            accepted += 1
        counters.num_drafts += 1
        counters.num_draft_tokens += len(conditional)
        counters.num_accepted_tokens += accepted
        committed = self._commit(1 + accepted, end)
        self.steps.append(Step(len(conditional), accepted, committed))
        return committed

    def recorded(self, conditional: tuple[float, ...]) -> np.ndarray | None:
        """r and alpha of every step; None for greedy requests that are sampled, as in vLLM, and without steps."""
        if not self.ratios or (self.sampling.temperature == 0 and self.sampling.replay is None):
            return None
        ratios = np.array(self.ratios, np.float32)
        if self.sampling.replay is not None:
            return np.stack([ratios, *self._of_law(ratios)], axis=1)
        return np.stack([ratios, np.broadcast_to(np.array(conditional, np.float32), ratios.shape)], axis=1)

    def _of_law(self, ratios: np.ndarray) -> list[np.ndarray]:
        """Place, p, rank and spread of the tokens that steps start from, [steps, K] each."""
        starts = 1 + np.arange(len(ratios))
        letters = np.isin(np.array(self.tokens)[starts], LETTERS)
        spread = (1 - len(LETTERS) ** -2) / 12
        values = (starts, letters / len(LETTERS), np.where(letters, 0.5, 1), np.full(len(ratios), spread))
        return [np.repeat(value.astype(np.float32)[:, None], ratios.shape[1], axis=1) for value in values]

    def _commit(self, emitted: int, end: float) -> int:
        replay = self.sampling.replay
        for count in range(1, emitted + 1):
            self.tokens.append(self.chance.choice(LETTERS) if replay is None else replay[len(self.tokens)])
            if replay is None and self.chance.random() < end:
                self.finish_reason = "stop"
            elif len(self.tokens) == self.sampling.max_tokens:
                self.finish_reason = "length"
            if self.finish_reason:
                return count
        return emitted
