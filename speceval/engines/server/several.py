"""Several servers as one engine: conversations are handed out over them, and what a lost one had goes to the others."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from speceval.engines.base import Engine, Finished, Order, Sampling
from speceval.engines.server.client import BUSY, RESUMES, Gone, Refused
from speceval.engines.server.settings import SECONDS_OF_A_STEP, SHORTEST
from speceval.errors import UserError
from speceval.store.schema import Counters, Evidence, Facts, PatchState

BROKEN = 500
"""Status from which it is the server that is broken, and not the request."""
COUNTED = ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos")


class One(Engine, Protocol):
    """What asks one server."""

    @property
    def calls(self) -> Collection[Future[Any]]:
        """The calls that are out."""


@dataclass
class Address:
    """One of the servers, and what it has in hand."""

    url: str
    engine: One
    out: dict[str, tuple[list[int], Sampling]] = field(default_factory=dict)
    """Requests that are out, by their names."""
    finished: Counters = field(default_factory=Counters)
    """What those that are done make of the server's totals."""
    before: Counters | None = None
    stepped: float = 0.0


class SeveralServers(Engine):
    """A conversation stays where it began, as long as that server answers. All servers must be the same."""

    loads_checkpoints = False
    replicates = False
    shortest_prompt = SHORTEST
    timed = True

    def __init__(self, order: Order, engines: Sequence[tuple[str, One]]) -> None:
        """`engines`: each server's address, and what asks it. Raises `UserError` where they differ."""
        self._addresses = [Address(url, engine) for url, engine in engines]
        self._lost: list[str] = []
        self._home: dict[str, Address] = {}
        self._k, self.copies = order.k, len(self._addresses)
        first = self._addresses[0]
        for other in self._addresses[1:]:
            if lines := differences(first.engine, other.engine):
                raise UserError(
                    f"--url: {first.url} and {other.url} are not the same ({'; '.join(lines)}): measure each by itself"
                )
        self.tokenizer, self.max_model_len = first.engine.tokenizer, first.engine.max_model_len

    @classmethod
    def require(cls) -> None:
        """Nothing is needed."""
        return

    @property
    def _any(self) -> One:
        return self._addresses[0].engine

    @property
    def served(self) -> Mapping[str, Any]:  # type: ignore[override]
        """What all of them say that they are and serve."""
        return self._any.served

    @property
    def evidence(self) -> Evidence:  # type: ignore[override]
        """What each of them tells of its drafts."""
        return self._any.evidence

    @property
    def knows_settings(self) -> bool:  # type: ignore[override]
        """Whether they tell their settings."""
        return self._any.knows_settings

    def facts(self) -> Facts:
        """The settings that all of them have."""
        return self._any.facts()

    def patches(self) -> list[PatchState]:
        """The state of every repair, the same in all of them."""
        return self._any.patches()

    def drafter(self) -> dict[str, Any]:
        """What all of them decided while they loaded the drafter."""
        return self._any.drafter()

    def notes(self) -> list[str]:
        """What a reader must know."""
        return [f"{self.copies} servers of one kind share the conversations", *self._any.notes()]

    def missing_patches(self) -> list[str]:
        """A line for each repair that is needed and not active."""
        return self._any.missing_patches()

    def warm_up(self) -> None:
        """Warm all of them. Raises `UserError` where one is not at rest."""
        for address in self._addresses:
            address.engine.warm_up()
            address.before = address.engine.counters()

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a request where its conversation is, or where least is in flight."""
        address = self._home.get(request_id)
        if address not in self._addresses:
            address = min(self._addresses, key=lambda one: len(one.out))
            self._home[request_id] = address
        address.engine.submit(request_id, prompt_token_ids, sampling)
        address.out[request_id] = prompt_token_ids, sampling

    def step(self) -> tuple[int, list[Finished]]:
        """Wait until an answer is here, or a moment. Raises `UserError` when every server is lost."""
        calls = [call for address in self._addresses for call in address.engine.calls]
        wait(calls, min(SECONDS_OF_A_STEP, self.patience), FIRST_COMPLETED)
        finished = []
        for address in list(self._addresses):
            due = time.monotonic() - address.stepped > SECONDS_OF_A_STEP  # recordings are fetched then
            if due or any(call.done() for call in address.engine.calls):
                finished += self._step(address)
        return sum(len(one.token_ids) for one in finished), finished

    def _step(self, address: Address) -> list[Finished]:
        address.engine.patience, address.stepped = 0.0, time.monotonic()
        try:
            _, finished = address.engine.step()
        except Gone as error:
            return self._lose(address, error)
        except Refused as error:
            if error.status < BROKEN and error.status not in BUSY:
                raise
            return self._lose(address, error)
        for one in finished:
            del address.out[one.request_id]
            address.finished = address.finished.plus(counted(one, self._k))
        return finished

    def _lose(self, address: Address, error: UserError) -> list[Finished]:
        """Go on without a server: what it has not finished is asked of the others. Raises `UserError` at the last."""
        self._addresses.remove(address)
        if not self._addresses:
            self._addresses.append(address)  # whose engine is still to be closed
            raise error
        reason = str(error).removesuffix(f": {RESUMES}")
        self._lost.append(f"{address.url} was lost, its conversations went to the other servers ({reason})")
        address.engine.close()
        for name, request in address.out.items():
            self.submit(name, *request)
        return []

    def counters(self) -> Counters | None:
        """The sum of all totals; None once a server is lost. RuntimeError while requests are in flight."""
        found = [address.engine.counters() for address in self._addresses]
        whole = Counters()
        for one in found:
            if one is None or self._lost:
                return None
            whole = whole.plus(one)
        return whole

    def foreign(self) -> str:
        """What others asked of the servers that are there."""
        lines = [(address.url, address.engine.foreign()) for address in self._addresses]
        return "; ".join(f"{url}: {line}" for url, line in lines if line)

    def losses(self) -> list[str]:
        """A line for each server that is gone."""
        return list(self._lost)

    def unbalanced(self) -> list[str]:
        """Where a server's totals are not those of what it has finished for us."""
        lines = []
        for address in self._addresses:
            if address.before is None or address.engine.foreign() or self.evidence in ("totals", "nothing"):
                continue
            if (now := address.engine.counters()) is None:
                continue
            theirs, ours = asdict(now.minus(address.before)), asdict(address.finished)
            lines += [
                f"{address.url}: {name}: its requests give {ours[name]}, it counted {theirs[name]}"
                for name in COUNTED
                if theirs[name] != ours[name]
            ]
        return lines

    def close(self) -> None:
        """Drop all connections; the servers go on."""
        for address in self._addresses:
            with suppress(Exception):
                address.engine.close()


def counted(one: Finished, k: int) -> Counters:
    """What a request makes of a server's totals, its padded steps with it."""
    drafted = [step for step in one.steps if step.drafted]
    return Counters(
        num_drafts=len(drafted) + one.padded_steps,
        num_draft_tokens=sum(step.drafted for step in drafted) + k * one.padded_steps,
        num_accepted_tokens=sum(step.accepted for step in drafted),
        num_accepted_tokens_per_pos=[sum(step.accepted >= j for step in drafted) for j in range(1, k + 1)],
    )


def differences(a: One, b: One) -> list[str]:
    """What two servers tell of themselves and is not the same, a line each."""
    one, other = (_told(engine) for engine in (a, b))
    names = [name for name in one | other if one.get(name) != other.get(name)]
    return [f"{name}: {one.get(name)} -> {other.get(name)}" for name in names]


def _told(engine: One) -> dict[str, Any]:
    patches = {f"patch {patch.id}": patch.state for patch in engine.patches()}
    drafter = {f"drafter's {name}": value for name, value in engine.drafter().items()}
    return {**engine.served, "evidence": engine.evidence, **engine.facts().model_dump(), **drafter, **patches}
