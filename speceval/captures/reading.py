"""An engine that reads given texts in one pass and keeps what the target said at each token.

To `measure.runner`, which knows the conversations and their prompts, it is an engine that replays: a text goes in, the
same text comes out. It comes out at once, for prompt and text are one prompt to the engine behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from speceval.engines.base import Engine, Finished, Parsed, Piece, Readable, Sampling
from speceval.errors import UserError
from speceval.store.schema import Counters

if TYPE_CHECKING:
    import torch


@dataclass
class Read:
    """A text that is being read."""

    prompt: list[int]
    text: tuple[int, ...]
    pieces: list[Piece] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Tokens that have a state: all but the last one."""
        return len(self.prompt) + len(self.text) - 1

    def states(self) -> dict[str, torch.Tensor]:
        """All states by name [rows, hidden size]. Raises `UserError` where some are missing."""
        import torch

        missing = torch.ones(self.rows, dtype=torch.bool)
        whole: dict[str, torch.Tensor] = {}
        for piece in self.pieces:
            for name, state in piece.states.items():
                into = whole.setdefault(name, state.new_empty(self.rows, state.shape[-1]))
                end = min(piece.start + len(state), self.rows)
                into[piece.start : end] = state[: end - piece.start]
                missing[piece.start : end] = False
        if missing.any():
            raise UserError(f"{int(missing.sum())} tokens of a text came back without a state: nothing of it is kept")
        return whole


class Reading(Engine):
    """`engine`, without a drafter, as one that replays texts by reading them."""

    def __init__(self, engine: Engine, layers: tuple[int, ...]) -> None:
        assert isinstance(engine, Readable)  # `write.prepare`
        self._engine, self._readable = engine, engine
        self.tokenizer, self.max_model_len = engine.tokenizer, engine.max_model_len
        self.shortest_prompt = engine.shortest_prompt  # type: ignore[misc]
        self._texts: dict[str, Read] = {}
        self.read: dict[str, list[Read]] = {}
        """What has been read under each name, turn after turn, until somebody takes it out."""
        self._readable.keep_states(layers)

    @classmethod
    def require(cls) -> None:
        """It needs what the engine behind does."""

    def parser(self, template_kwargs: Mapping[str, Any]) -> Callable[[Sequence[int]], Parsed] | None:
        """That of the engine behind: the next prompts are to be the run's own."""
        return self._engine.parser(template_kwargs)

    def warm_up(self) -> None:
        """That of the engine behind."""
        self._engine.warm_up()

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a text, `Sampling.replay`."""
        text = sampling.replay or ()
        self._texts[request_id] = Read(prompt_token_ids, text)
        self._engine.submit(request_id, [*prompt_token_ids, *text[:-1]], Sampling(0.0, 1.0, 0, 1, None))

    def step(self) -> tuple[int, list[Finished]]:
        """One step of the engine behind: the tokens of the texts that are through, and these."""
        _, finished = self._engine.step()
        for piece in self._readable.take_states():
            if piece.request_id in self._texts:  # not a warm-up
                self._texts[piece.request_id].pieces.append(piece)
        through = [self._texts.pop(one.request_id) for one in finished]
        for one, read in zip(finished, through, strict=True):
            self.read.setdefault(one.request_id, []).append(read)
        texts = [read.text for read in through]
        answers = [
            Finished(one.request_id, list(text), "length", None, [], one.cached_tokens)
            for one, text in zip(finished, texts, strict=True)
        ]
        return sum(map(len, texts)), answers

    def alone(self, tokens: list[int]) -> Read:
        """Read one sequence while nothing else is read."""
        name = "alone"
        self.submit(name, tokens[:-1], Sampling(0.0, 1.0, 0, 2, None, replay=(tokens[-1], 0)))
        while name not in self.read:
            self.step()
        return self.read.pop(name)[0]

    def in_flight(self) -> list[list[int]]:
        """Nothing is committed before all is."""
        return []

    def counters(self) -> Counters:
        """It drafts nothing."""
        return Counters()

    def facts(self) -> Any:
        """Those of the engine behind."""
        return self._engine.facts()

    def close(self) -> None:
        """Close the engine behind."""
        self._engine.close()
