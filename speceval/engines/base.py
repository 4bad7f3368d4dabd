"""What the core asks of an engine: plain data and one protocol. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from speceval.store.schema import Counters, Facts
from vllm_patches import PatchStatus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of one request: all of them, so that no checkpoint's defaults can leak in."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int | None
    replay: tuple[int, ...] | None = None
    """Tokens to emit in place of what is sampled (`vllm_patches.taps.replay`)."""


@dataclass(frozen=True)
class Step:
    """One step of a request after its prefill. `drafted` 0: a step that verified no draft tokens."""

    drafted: int
    accepted: int
    committed: int


@dataclass(frozen=True)
class Finished:
    """A request that is done. `token_ids` are the committed tokens, the prefill's first one included."""

    request_id: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: str | int | None
    steps: list[Step]
    cached_tokens: int
    padded_steps: int = 0
    """Steps that vLLM filled up with drafts nobody made; not among `steps`."""
    recorded: NDArray[np.float32] | None = None
    """What the verifier saw, [steps with drafts, 2, K]: r_j and alpha_j, or kept_j and p_j of a replayed text.

    NaN where nothing was drafted or recorded.
    """


class Engine(Protocol):
    """What the runner needs of an engine."""

    tokenizer: Any
    max_model_len: int

    def facts(self) -> Facts:
        """The settings as the engine resolved them, for the fingerprint."""

    def patches(self) -> list[PatchStatus]:
        """The patches' states where the engine samples."""

    def warm_up(self) -> None:
        """Pay the start-up's costs now."""

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a request."""

    def step(self) -> tuple[int, list[Finished]]:
        """Advance once: the number of tokens committed, and the requests that finished."""

    def in_flight(self) -> list[list[int]]:
        """Tokens committed at each step so far by each request that is not finished, the prefill's first."""

    def counters(self) -> Counters:
        """The engine's own totals."""
