"""A running server of any dialect as an engine: what it tells of its drafts is taken as it is, with its grade."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Any

from speceval.engines.base import Engine, Finished, Order, Sampling, unknown
from speceval.engines.server import probe
from speceval.engines.server.answers import Answer, complete, of_nothing, reading, whole
from speceval.engines.server.client import Client
from speceval.engines.server.settings import SECONDS_OF_A_STEP, SHORTEST, Watch, hold_tokens, refuse, rest, tokenizer_of
from speceval.errors import UserError
from speceval.store.schema import Counters, Evidence, Facts


@dataclass(frozen=True)
class _Call:
    """A request that is out: its name, and what it asks."""

    request_id: str
    prompt: list[int]
    max_tokens: int


class PlainServerEngine(Engine):
    """Settings are as the command line says: the server does not tell them, or not all."""

    loads_checkpoints = False
    shortest_prompt = SHORTEST
    replicates = False
    knows_settings = False
    timed = True

    def __init__(self, order: Order, client: Client, seen: probe.Seen) -> None:
        """Raises `UserError` for what this server cannot be asked."""
        self._order, self._client, self._seen = order, client, seen
        self.served = seen.served()
        self._calls: dict[Future[Any], _Call] = {}
        self._closed, self._watch = False, Watch(client, "")
        self.max_model_len = seen.context
        try:
            _check(order, seen)
            self.tokenizer = tokenizer_of(order)
            hold_tokens(client, seen.model, self.tokenizer, order)
        except BaseException:
            self.close()
            raise

    @classmethod
    def require(cls) -> None:
        """Nothing is needed."""
        return

    @property
    def calls(self) -> Collection[Future[Any]]:
        """The calls that are out."""
        return self._calls.keys()

    @property
    def evidence(self) -> Evidence:  # type: ignore[override]
        """What it tells of its drafts."""
        return self._seen.evidence

    def facts(self) -> Facts:
        """What it tells of itself."""
        seen = self._seen
        return unknown(
            vllm=seen.version if seen.dialect.name == "vllm" else None,
            device=str(seen.told.get("device", "not told")),
            runner=seen.dialect.name if seen.version is None else f"{seen.dialect.name} {seen.version}",
            rejection_sample_method=seen.rule,
            method=str(seen.told.get("method", "not told")),
            k=self._order.k,
            max_model_len=seen.context,
        )

    def notes(self) -> list[str]:
        """What a reader must know of this evidence."""
        seen = self._seen
        lines = [f"evidence: {seen.evidence} ({probe.GIVES[seen.evidence]})"]
        lines.append(
            f"{seen.dialect.name} server: drafter, drafting and settings are as asked for, it does not tell them"
        )
        return lines + seen.notes

    def warm_up(self) -> None:
        """Wait for a server that does nothing, where it tells that. Probing it has warmed it."""
        rest(self._client, self._seen.dialect.metrics)
        self._watch = Watch(self._client, self._seen.dialect.metrics)

    def foreign(self) -> str:
        """What others asked of it since it was warmed up."""
        return self._watch.foreign()

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a request."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        if len(prompt_token_ids) < self.shortest_prompt:
            raise UserError(f"a prompt of {len(prompt_token_ids)} tokens: at least {self.shortest_prompt} are needed")
        seen = self._seen
        prompt = self.tokenizer.decode(prompt_token_ids) if seen.road.texts else prompt_token_ids
        future = probe.ask(self._client, seen.road, seen.model, prompt, sampling, self._order.timed)
        self._calls[future] = _Call(request_id, prompt_token_ids, sampling.max_tokens)

    def step(self) -> tuple[int, list[Finished]]:
        """Wait until an answer is here, or a moment."""
        done, _ = wait(self._calls, min(SECONDS_OF_A_STEP, self.patience), FIRST_COMPLETED)
        finished = [self._finish(self._calls.pop(call), call) for call in done]
        return sum(len(one.token_ids) for one in finished), finished

    def _finish(self, call: _Call, future: Future[Any]) -> Finished:
        seen, answered = self._seen, future.result()
        where = f"{seen.url}{seen.road.path}"
        with reading(where, seen.dialect.name):
            answer, times = probe.read(seen.road, answered, self._order.k)
        if seen.dialect.name == "openai" and not answer.tokens:
            complete(answer, where)
            answer = self._encoded(answer)
        else:
            whole(answer, call.prompt, call.max_tokens, where)
        if seen.evidence in ("totals", "nothing"):
            answer = replace(answer, steps=of_nothing(len(answer.tokens)))
        elif seen.road.tells_always and answer.less_than(seen.evidence):
            raise UserError(f"{where}: told {seen.evidence}, and now {answer.evidence}: several servers behind it?")
        longest = max((step.drafted for step in answer.steps), default=0)
        if longest > self._order.k:
            raise UserError(f"--k {self._order.k}: the server drafts {longest} tokens a step: ask for that")
        self._watch.tokens += len(answer.tokens)
        return replace(answer.finished(call.request_id), times=times if self._order.timed else None)

    def _encoded(self, answer: Answer) -> Answer:
        """An answer that came as text alone, by the tokens of this machine's tokenizer; without one: its end."""
        end = [getattr(self.tokenizer, "eos_token_id", None) or 0]
        tokens = list(self.tokenizer.encode(answer.text, add_special_tokens=False)) or end
        return replace(answer, tokens=tokens, steps=of_nothing(len(tokens)))

    def counters(self) -> Counters | None:
        """The server's own totals, of everyone's requests; None where it tells none."""
        if self._calls:
            raise RuntimeError("requests are in flight")
        counted: Counters | None = probe.counters(self._client, self._seen, self._order.k)
        return counted

    def close(self) -> None:
        """Drop the connections; the server goes on."""
        self._closed = True
        self._client.close()
        self._calls.clear()


def _check(order: Order, seen: probe.Seen) -> None:
    """Raises `UserError` for what this server cannot be asked."""
    refuse(order)
    if order.replay:
        raise UserError(f"--replay: needs a vLLM server with {dict(seen.dialect.mends).get(WORKERS, 'our extension')}")
    if order.runner is not None:
        raise UserError(f"--runner {order.runner}: this server does not tell which model runner it has: leave it out")
    if order.draft is None:
        raise UserError("--engine server: the target alone cannot be measured through this server")
    if seen.dialect.name == "sglang" and order.temperature > 0 and seen.told.get("device") in ("cpu", "xpu"):
        raise UserError(f"--temp {order.temperature:g}: {seen.notes[0]}")
    told = seen.told.get("k")
    if told is not None and told != order.k:
        raise UserError(f"--k {order.k}: the server drafts {told} tokens a step: ask for that")


WORKERS = "settings, patches, p and q of its workers"
