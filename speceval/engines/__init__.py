"""Engines generate tokens and report their verify steps. Only this package knows vLLM.

This module holds the plain data that every engine speaks; it imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from speceval.schema import Counters, Facts
from vllm_patches import PatchStatus

__all__ = ["Counters", "Engine", "Facts", "Finished", "Sampling", "Step", "align_steps", "is_padded"]

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


def is_padded(uncached: int, k: int, commits: list[int], drafted: list[int], accepted: list[int]) -> bool:
    """Whether a request's first record is no round: its prefill, filled up with `k` drafts that nobody made.

    vLLM does that when the prefix cache leaves one token of the prompt (`uncached`) to compute (v1/core/sched/
    scheduler.py, "Pad new decode requests"). Such a step commits one token, and the request has as many records as
    commits. Other arguments as in `align_steps`.
    """
    return (
        uncached == 1
        and commits[:1] == [1]
        and (drafted[:1], accepted[:1]) == ([k], [0])
        and len(drafted) >= len(commits)
    )


def align_steps(commits: list[int], drafted: list[int], accepted: list[int]) -> list[Step]:
    """Join what a request received, step by step, with the engine's record of its drafts.

    `commits`: tokens received at each engine step, the prefill's first; `drafted`, `accepted`: one entry for each step
    that verified drafts, in order. A step that fits the next entry takes it; any other must be a step without drafts,
    which commits one token. Entries that fit nowhere are kept as steps with 0 committed tokens, for
    `acceptance.reconcile` to name.
    """
    steps: list[Step] = []
    record = 0
    for index, committed in enumerate(commits[1:], start=1):
        last = index == len(commits) - 1
        left = len(drafted) - record
        fits = left > 0 and (committed == 1 + accepted[record] or (last and committed <= accepted[record]))
        if fits:
            steps.append(Step(drafted[record], accepted[record], committed))
            record += 1
        else:
            steps.append(Step(0, 0, committed))
    steps.extend(Step(d, a, 0) for d, a in zip(drafted[record:], accepted[record:], strict=True))
    return steps
