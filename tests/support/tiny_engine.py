"""An engine of plain torch on `tiny`'s checkpoints: it writes letters, and reads texts with their hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from speceval import engines
from speceval.engines.base import Finished, Order, Piece, Sampling
from speceval.engines.simulated import Characters, SimulatedEngine
from support import tiny

NAME = "tiny"


def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `--engine tiny` be this one."""
    monkeypatch.setitem(engines.BUILT_IN, NAME, "support.tiny_engine:TinyEngine")


class Letters(Characters):
    """Ids of tiny's vocabulary but the special ones."""

    def encode(self, text: str, **_: Any) -> list[int]:
        """A token per character."""
        return [letter(ord(character)) for character in text]

    def decode(self, token_ids: list[int], **_: Any) -> str:
        """Letters."""
        return "".join(chr(ord("a") + token - 2) for token in token_ids)


def letter(code: int) -> int:
    """The token of a character."""
    return 2 + code % (tiny.VOCAB - 2)


class TinyEngine(SimulatedEngine):
    """`SimulatedEngine` with tiny's tokens; without a drafter it reads what it is given."""

    loads_checkpoints = True
    fails_after: int | None = None
    """Texts after which reading breaks off."""

    @classmethod
    def open(cls, order: Order) -> TinyEngine:
        """One for an order."""
        engine = super().open(replace(order, engine_args={"max_model_len": 1 << 12}))
        assert isinstance(engine, cls)
        engine.tokenizer = Letters()
        engine._weights = tiny.load(Path(order.target.model))
        engine._reads = order.draft is None
        engine._queue, engine._pieces, engine._done = [], [], 0
        return engine

    def keep_states(self, layers: Sequence[int]) -> None:
        """Of every text from now on."""
        self._layers = tuple(layers)

    def take_states(self) -> list[Piece]:
        """Since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def warm_up(self) -> None:
        """Nothing to pay."""

    def log_probabilities(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """By the target's own forward pass."""
        found = []
        for sequence in sequences:
            logits = tiny.target_forward(self._weights, torch.tensor([list(sequence)]))[0][0]
            found.append(logits.log_softmax(-1)[:-1].gather(1, torch.tensor(sequence[1:])[:, None])[:, 0].tolist())
        return found

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a text to write or to read."""
        if self._reads:
            self._queue.append((request_id, prompt_token_ids))
        else:
            super().submit(request_id, prompt_token_ids, sampling)

    def step(self) -> tuple[int, list[Finished]]:
        """Write a step of every text, or read one text in two pieces."""
        if not self._reads:
            committed, finished = super().step()
            return committed, [replace(one, token_ids=[letter(token) for token in one.token_ids]) for one in finished]
        if self.fails_after is not None and self._done >= self.fails_after:
            raise KeyboardInterrupt
        name, tokens = self._queue.pop(0)
        self._done += 1
        streams = tiny._streams(self._weights, torch.tensor([tokens]))
        states = {"final": tiny._target_hidden(self._weights, streams)[0]}
        states |= {f"layer.{layer}": streams[layer][0] for layer in self._layers}
        half = len(tokens) // 2
        self._pieces.append(Piece(name, half, {which: state[half:] for which, state in states.items()}))
        self._pieces.append(Piece(name, 0, {which: state[:half] for which, state in states.items()}))
        return 1, [Finished(name, [0], "length", None, [], 0)]
