"""Draws many continuations of fixed prompts from a running engine, with what its verifier saw."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from speceval.engines.base import Engine, Finished, Sampling, Verifiable
from speceval.errors import UserError
from speceval.estimate import books
from speceval.store.schema import Counters

Tick = Callable[[int, int], None]
"""Told after each engine step: continuations finished, and wanted."""

AHEAD = 2
"""Requests in the engine's hands, in batches: the batch stays full while others finish."""

FIRST, BONUS = 0, -1
"""Slots of a token that no draft stood for: the prefill's token, and the one after all drafts were accepted."""


@dataclass(frozen=True)
class Plan:
    """What to draw. `greedy_share` of the requests, evenly among the others, are sent with temperature 0."""

    prompts: Sequence[Sequence[int]]
    samples: int
    tokens: int
    temperature: float
    top_k: int
    top_p: float
    seeded: bool
    greedy_share: float
    seed: int

    def prompt(self, index: int) -> int:
        """Which prompt request `index` continues: all in turn, greedy and sampled requests alike."""
        return (index + self._greedy_before(index)) % len(self.prompts)

    def greedy(self, index: int) -> bool:
        """Whether request `index` is one of the greedy ones."""
        return self._greedy_before(index + 1) > self._greedy_before(index)

    def _greedy_before(self, index: int) -> int:
        return int(index * self.greedy_share)

    def sampling(self, index: int) -> Sampling:
        """Every sampling parameter of request `index`."""
        text = f"verify\x1f{self.seed}\x1f{index}"
        own = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        seed = own if self.seeded else None
        if self.greedy(index):
            return Sampling(0.0, 1.0, 0, self.tokens, seed)
        return Sampling(self.temperature, self.top_p, self.top_k, self.tokens, seed)


@dataclass
class Continuations:
    """Continuations in the order of their requests."""

    tokens: list[tuple[int, ...]] = field(default_factory=list)
    slots: list[tuple[int, ...]] = field(default_factory=list)
    """For each token the draft position that it was verified at (1 ... K), FIRST or BONUS; see `slots_of`."""
    undrafted: int = 0
    """Steps after the prefill that verified no drafts."""
    recorded: dict[str, NDArray[Any]] | None = None
    """`Verifiable.take_evidence`; None where nothing was recorded."""
    rejection: str | None = "standard"
    """How the engine verified drafts."""
    counts: dict[str, int] = field(default_factory=dict)
    """`padded`, `broken` and `without_q` of `evidence`, and the engine's `preemptions`."""


SEVERAL = 16
"""Requests at once of a server that does not tell how many it runs."""


def draw(engine: Engine, plan: Plan, tick: Tick) -> Continuations:
    """Run the plan's requests through the engine. Raises `UserError` if a request ends in an error, or
    a kernel left its tensors.
    """
    _check_context(engine, plan)
    recording = isinstance(engine, Verifiable) and engine.start_evidence()
    before = engine.counters() or Counters()
    batch = AHEAD * (engine.facts().max_num_seqs or SEVERAL)
    finished: dict[str, Finished] = {}
    sent = 0
    while len(finished) < plan.samples:
        while sent < plan.samples and sent - len(finished) < batch:
            engine.submit(f"v{sent}", list(plan.prompts[plan.prompt(sent)]), plan.sampling(sent))
            sent += 1
        finished |= {done.request_id: done for done in engine.step()[1]}
        tick(len(finished), plan.samples)
    found = Continuations(rejection=engine.facts().rejection_sample_method)
    for index in range(plan.samples):
        done = finished[f"v{index}"]
        if done.finish_reason not in ("length", "stop"):
            raise UserError(f"the engine ended a request with {done.finish_reason!r}: nothing can be said about it")
        found.tokens.append(tuple(done.token_ids))
        found.slots.append(slots_of(done))
        found.undrafted += sum(step.drafted == 0 for step in done.steps)
    after = engine.counters() or Counters()
    if strayed := books.strays(after.kernel_strays - before.kernel_strays):
        raise UserError(strayed)
    found.counts["preemptions"] = after.preemptions - before.preemptions
    if recording and isinstance(engine, Verifiable):
        found.recorded, counts = engine.take_evidence()
        found.counts |= counts
    return found


def slots_of(done: Finished) -> tuple[int, ...]:
    """Slot of each committed token: which of a step's drafts it replaced or was.

    Whether slot j is reached, and how many drafts a step has, is settled before the token there is drawn; so given
    everything earlier the token follows the target's law at each slot, and each can be tested on its own.
    """
    later = [BONUS if place > step.drafted else place for step in done.steps for place in range(1, step.committed + 1)]
    return (*[FIRST] * (len(done.token_ids) - len(later)), *later)


def _check_context(engine: Engine, plan: Plan) -> None:
    longest, k = max(map(len, plan.prompts)), engine.facts().k
    needed = longest + plan.tokens + k + 1
    if needed > engine.max_model_len:
        raise UserError(
            f"--n-tokens {plan.tokens}: the longest prompt, the tokens and a step's drafts need {needed} positions, "
            f"the engine has {engine.max_model_len}: ask for fewer tokens, or raise max_model_len"
        )
