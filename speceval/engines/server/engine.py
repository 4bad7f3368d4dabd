"""A running vLLM server as an engine: token ids in, token ids and each request's verify steps out.

It must have been started to tell all that (START): what it is made of is then read back from its workers, and what is
measured is what an engine in this process would give.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from speceval.engines.base import Engine, Finished, Order, Sampling
from speceval.engines.server import metrics, probe
from speceval.engines.server.address import short
from speceval.engines.server.answers import joined, reading, sound, times_of, vllm, whole
from speceval.engines.server.client import Client, Refused, Stream
from speceval.engines.server.dialects import WITH_USAGE, parameters
from speceval.engines.server.plain import PlainServerEngine
from speceval.engines.server.settings import (
    SECONDS_OF_A_STEP,
    SHORTEST,
    Watch,
    addresses,
    arguments,
    client,
    hold_tokens,
    refuse,
    rest,
    tokenizer_of,
)
from speceval.engines.server.several import One, SeveralServers
from speceval.engines.vllm import listing, loading
from speceval.engines.vllm.align import replayed_steps
from speceval.engines.vllm.listening import Listening
from speceval.engines.vllm.offline import agreed
from speceval.engines.vllm.recordings import Recordings
from speceval.engines.vllm.start import checkpoint, missing_patches
from speceval.errors import UserError
from speceval.store.schema import Counters, Facts, PatchState
from vllm_patches.state import TEXT, merged
from vllm_patches.worker import (
    COUNT,
    EXTENSION,
    OVERLAP,
    REPLAY,
    Disagreement,
    ask,
    ask_counts,
    ask_loading,
    ask_settings,
    from_text,
    stop_tap,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

START = (
    f"VLLM_SERVER_DEV_MODE=1, --worker-extension-cls {EXTENSION}, --enable-scale-out and "
    "--per-request-spec-decode-metrics detailed"
)
"""What a server is to be started with."""
WARM_UP_TOKENS = 8
GENERATE = "/inference/v1/generate"
NAMED = "generate-tokens-"
"""What that endpoint puts before a request's name."""


@dataclass(frozen=True)
class _Call:
    """A request that is out: its name here and there, what it asks, and whether it replays a text."""

    request_id: str
    name: str
    prompt: list[int]
    max_tokens: int
    replayed: bool


class ServerEngine(Listening, Engine):
    """Every request is one call; as many are out at once as the order's batch.

    With `record` and `replay` the server's workers record as those of an engine in this process do.
    """

    loads_checkpoints = False
    shortest_prompt = SHORTEST
    replicates = False
    timed = True

    def __init__(self, order: Order, client: Client, model: str, served: dict[str, Any] | None = None) -> None:
        """`client` reaches the server, which serves `model`; `served`: what it tells besides. Raises `UserError`."""
        refuse(order)
        self.served = served or {}
        self._order, self._closed = order, False
        self._client, self._model = client, model
        self._calls: dict[Future[Any], _Call] = {}
        self._taps = set()
        self._recorder = REPLAY if order.replay else OVERLAP if order.record else None
        self._recordings = Recordings()
        self._watch: Watch | None = None
        try:
            self._settings = self._read_settings()
            _check(order, self._settings)
            self.max_model_len = int(self._settings.max_model_len or 0)
            self._loaded = self._ask(ask_loading)
            with self._reading():
                loading.check(self._loaded, str(checkpoint(order.draft)))
            self.tokenizer = tokenizer_of(order)
            hold_tokens(client, model, self.tokenizer, order)
            self._record()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, order: Order) -> Engine:
        """One for the server at the order's `url`, or for all of them where there are several. Raises `UserError`."""
        given = arguments(order)
        urls = addresses(str(given["url"]))
        opened: list[tuple[str, One]] = []
        try:
            for url in urls:
                opened.append((url, cls._at(url, order, given)))
            return opened[0][1] if len(opened) == 1 else SeveralServers(order, opened)
        except BaseException:
            for _, engine in opened:
                engine.close()
            raise

    @classmethod
    def _at(cls, url: str, order: Order, given: dict[str, Any]) -> One:
        """One for a server: this class where its workers answer, else one that takes less."""
        reached = client(order, url, given)
        try:
            seen = probe.look(reached, given["model"], given["dialect"], order.timed)
            if seen.workers and seen.evidence == "steps" and seen.road.path == GENERATE:
                return cls(order, reached, seen.model, seen.served())
            return cast(One, PlainServerEngine(order, reached, seen))
        except BaseException:
            reached.close()
            raise

    @property
    def calls(self) -> Collection[Future[Any]]:
        """The calls that are out."""
        return self._calls.keys()

    def _record(self) -> None:
        """Have the workers record what is to be recorded. Raises `UserError`."""
        self._ask(stop_tap)  # a measurement that was killed may have left some
        if self._recorder is not None:
            self.listen(self._recorder)
        if self._order.draft is not None and self._settings.runner == "V2":
            self.listen(COUNT)

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """What the workers answer to a question of `vllm_patches.worker`. Raises `UserError`."""
        try:
            with self._reading():
                return question(self, *arguments)
        except Disagreement as error:
            raise UserError(f"{error}: what this server samples cannot be trusted") from error

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """Call a method of each worker, as `vllm.LLM.collective_rpc` does; plain data alone can travel."""
        as_text = method == "drain_tap"
        try:
            answer = self._client.post(
                "/collective_rpc", {"method": f"{method}_text" if as_text else method, "args": list(args)}
            )
        except Refused as error:
            mend = f"{error}: to be measured step by step, a server needs {START}"
            raise Refused(mend, error.status) from error
        with self._reading():
            if as_text:
                return [from_text(one) for one in answer["results"]]
            return [short(one) if isinstance(one, str) else one for one in answer["results"]]

    def _reading(self) -> AbstractContextManager[None]:
        return reading(f"{self._client.url}/collective_rpc", "our extension")

    def _read_settings(self) -> Facts:
        with self._reading():
            workers = agreed(self._ask(ask_settings))
            return Facts(vllm=short(self._client.get("/version")["version"]), generation_config=None, **workers)

    def facts(self) -> Facts:
        """The settings as the server's workers have them."""
        return self._settings

    def patches(self) -> list[PatchState]:
        """State of every ledger row of its model runner in the server's workers."""
        run = (self._settings.runner, self._settings.method)
        with self._reading():
            return [listing.as_state(status) for status in merged(self._ask(ask)) if listing.concerns(status.id, *run)]

    def drafter(self) -> dict[str, Any]:
        """What vLLM decided while it loaded the drafter (`vllm_patches.loading`)."""
        with self._reading():
            return dict(self._loaded["decided"])

    def notes(self) -> list[str]:
        """The same in words."""
        with self._reading():
            return loading.notes(self._loaded)

    def missing_patches(self) -> list[str]:
        """One line for each patch that the order needs and that is not active where the server samples."""
        return missing_patches(self.patches(), self._settings, self._order.temperature)

    def warm_up(self) -> None:
        """Run a few tokens, then wait for a server that does nothing: what others ask of it would be counted as ours.

        Raises `UserError` where it does not come to rest.
        """
        self.submit("warm-up", [0, 1, 2, 3], Sampling(0.0, 1.0, 0, WARM_UP_TOKENS, None))
        while self._calls:
            self.step()
        rest(self._client)
        self._watch = Watch(self._client, "vllm:")

    def foreign(self) -> str:
        """What others asked of it since it was warmed up."""
        return "" if self._watch is None else self._watch.foreign()

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a request; every sampling parameter is sent: the server's defaults have no say."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        if len(prompt_token_ids) < self.shortest_prompt:
            raise UserError(f"a prompt of {len(prompt_token_ids)} tokens: at least {self.shortest_prompt} are needed")
        call = _Call(request_id, uuid4().hex, prompt_token_ids, sampling.max_tokens, sampling.replay is not None)
        body = {
            "request_id": call.name,
            "model": self._model,
            "token_ids": prompt_token_ids,
            "sampling_params": _parameters(sampling),
        }
        future: Future[Any]
        if self._order.timed:
            future = self._client.begin_stream(GENERATE, body | WITH_USAGE, sampling.max_tokens)
        else:
            future = self._client.begin(GENERATE, body)
        self._calls[future] = call

    def step(self) -> tuple[int, list[Finished]]:
        """Wait until an answer is here, or for `SECONDS_OF_A_STEP`. Tokens are counted with the request they finish."""
        done, _ = wait(self._calls, min(SECONDS_OF_A_STEP, self.patience), FIRST_COMPLETED)
        if self._recorder is not None:
            self._take()
        finished = [self._finish(self._calls.pop(call), call) for call in done]
        return sum(len(one.token_ids) for one in finished), finished

    def _take(self) -> None:
        """Fetch what the workers have recorded, of our requests."""
        with self._reading():
            heard = self.heard(str(self._recorder))
            heard["requests"] = [name.removeprefix(NAMED) for name in heard["requests"]]
            self._recordings.take(heard, {call.name for call in self._calls.values()})

    def _finish(self, call: _Call, future: Future[Any]) -> Finished:
        try:
            answer = future.result()
        except Refused as error:
            mend = f": a server needs {START}" if error.status in (403, 404) else ""
            raise Refused(f"{error}{mend}", error.status) from error
        where = f"{self._client.url}{GENERATE}"
        with reading(where, "vLLM"):
            times = times_of(answer) if isinstance(answer, Stream) else None
            told = sound(vllm(joined(answer.events) if isinstance(answer, Stream) else answer, self._settings.k))
            if any(step.drafted > self._settings.k for step in told.steps):
                raise ValueError(f"steps of more than {self._settings.k} drafts")
        whole(told, call.prompt, call.max_tokens, where)
        if told.less_than("steps") and self._settings.method != "none":
            raise UserError(f"the server tells no verify steps: it needs {START}")
        done = replace(told.finished(call.request_id), times=times)
        if self._watch is not None:
            self._watch.tokens += len(done.token_ids)
        if self._recorder is None:
            return done
        drafted = [step.drafted for step in done.steps if step.drafted]
        recorded = self._recordings.pop(call.name, drafted, self._settings.k)
        return with_text(done, recorded) if call.replayed else replace(done, recorded=recorded)

    def log_probabilities(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """The target's log-probability of each token of each sequence, but the first, given those before it."""
        how = _parameters(Sampling(0.0, 1.0, 0, 1, None)) | {"prompt_logprobs": 0}
        scores = []
        for sequence in sequences:
            body = {"model": self._model, "token_ids": list(sequence), "sampling_params": how}
            rows = self._client.post(GENERATE, body).get("prompt_logprobs")
            if not rows:
                raise UserError(f"{self._client.url}: tells no log-probabilities of a prompt")
            pairs = zip(rows[1:], sequence[1:], strict=True)
            scores.append([float(row[str(token)]["logprob"]) for row, token in pairs])
        return scores

    def counters(self) -> Counters:
        """The server's own totals, of everyone's requests. RuntimeError while some of ours run: what they have got so
        far is not told.
        """
        if self._calls:
            raise RuntimeError("requests are in flight")
        counted = metrics.counters(self._client.text("/metrics"))
        with self._reading():
            counted = replace(counted, **self._ask(ask_counts))
        counted.num_accepted_tokens_per_pos = metrics.of_positions(counted, self._settings.k)
        return counted

    def close(self) -> None:
        """Drop the connections, which ends what still runs on the server; the server itself goes on."""
        if self._closed:
            return
        self._closed = True
        self._client.hurry()
        with suppress(Exception):  # a server that is gone listens to nobody
            self.unlisten_all()
        self._client.close()
        self._calls.clear()


def with_text(done: Finished, recorded: NDArray[np.float32] | None) -> Finished:
    """A replayed request: each step commits one token, and the record says which place of the text it is of."""
    drafted = [step.drafted for step in done.steps if step.drafted]
    if recorded is None and drafted:
        return done
    places = [] if recorded is None else recorded[:, 1, 0].tolist()
    steps = replayed_steps([1] * len(done.token_ids), drafted, places)
    return done if steps is None else replace(done, steps=steps, recorded=recorded)


def _check(order: Order, facts: Facts) -> None:
    """Raises `UserError` where the server cannot do what `order` asks and no later check would say so."""
    if order.draft is None and facts.method != "none":
        raise UserError(f"the server drafts ({facts.method}); the target alone needs a server without a drafter")
    if order.draft is not None and facts.method != order.draft.method:
        raise UserError(f"--draft {order.draft.name}: is {order.draft.method}, the server drafts with {facts.method}")


def _parameters(sampling: Sampling) -> dict[str, Any]:
    text = None if sampling.replay is None else {TEXT: list(sampling.replay)}
    return parameters(sampling) | {"detokenize": False, "extra_args": text}
