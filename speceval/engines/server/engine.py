"""A running vLLM server as an engine: token ids in, token ids and each request's verify steps out.

It must have been started to tell all that (START): what it is made of is then read back from its workers, and what is
measured is what an engine in this process would give.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from speceval import catalog
from speceval.engines.base import Engine, Finished, Order, Sampling, Step
from speceval.engines.server import metrics
from speceval.engines.server.client import SECONDS, Client, Refused
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
WARM_UP_TOKENS, SECONDS_TO_REST = 8, 20
SECONDS_OF_A_STEP = 1.0
"""A step that finishes nothing ends then: recordings are fetched before the worker drops any, and Ctrl-C is obeyed."""
GENERATE = "/inference/v1/generate"
NAMED = "generate-tokens-"
"""What that endpoint puts before a request's name."""
ARGUMENTS = {"url": None, "api_key_env": None, "model": None, "timeout": SECONDS}
"""Of `--engine-arg`, with their defaults; `model`: the name it is served by, if there are several."""


@dataclass(frozen=True)
class _Call:
    """A request that is out: its name here and there, and whether it replays a text."""

    request_id: str
    name: str
    replayed: bool


class ServerEngine(Listening, Engine):
    """Every request is one call; as many are out at once as the order's batch.

    With `record` and `replay` the server's workers record as those of an engine in this process do.
    """

    loads_checkpoints = False
    shortest_prompt = 2  # vLLM pads the first step of a shorter one
    replicates = False

    def __init__(self, order: Order) -> None:
        """Find the server and what it is. Raises `UserError`."""
        self._open(order, _arguments(order))

    def _open(self, order: Order, arguments: dict[str, Any]) -> None:
        _refuse(order)
        self._order, self._closed = order, False
        self._client = Client(str(arguments["url"]), order.batch, arguments["api_key_env"], float(arguments["timeout"]))
        self._calls: dict[Future[Any], _Call] = {}
        self._taps = set()
        self._recorder = REPLAY if order.replay else OVERLAP if order.record else None
        self._recordings = Recordings()
        try:
            self._model = _served(self._client, arguments["model"])
            self._settings = self._read_settings()
            _check(order, self._settings)
            self.max_model_len = int(self._settings.max_model_len or 0)
            self._loaded = self._ask(ask_loading)
            loading.check(self._loaded, str(checkpoint(order.draft)))
            self.tokenizer = tokenizer_of(order)
            self._record()
        except BaseException:
            self.close()
            raise

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
            raise UserError(f"{error}: to be measured step by step, a server needs {START}") from error
        return [from_text(one) for one in answer["results"]] if as_text else list(answer["results"])

    def _read_settings(self) -> Facts:
        workers = agreed(self._ask(ask_settings))
        return Facts(vllm=str(self._client.get("/version")["version"]), generation_config=None, **workers)

    def facts(self) -> Facts:
        """The settings as the server's workers have them."""
        return self._settings

    def patches(self) -> list[PatchState]:
        """State of every ledger row of its model runner in the server's workers."""
        runner = self._settings.runner
        return [listing.as_state(status) for status in merged(self._ask(ask)) if listing.concerns(status.id, runner)]

    def drafter(self) -> dict[str, Any]:
        """What vLLM decided while it loaded the drafter (`vllm_patches.loading`)."""
        return dict(self._loaded["decided"])

    def notes(self) -> list[str]:
        """The same in words."""
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
        for _ in range(SECONDS_TO_REST):
            if not (busy := metrics.running(self._client.text("/metrics"))):
                return
            time.sleep(1)
        raise UserError(f"{self._client.url}: runs {busy} requests of others, nothing was measured: it must be idle")

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a request; every sampling parameter is sent: the server's defaults have no say."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        if len(prompt_token_ids) < self.shortest_prompt:
            raise UserError(f"a prompt of {len(prompt_token_ids)} tokens: at least {self.shortest_prompt} are needed")
        call = _Call(request_id, uuid4().hex, sampling.replay is not None)
        body = {
            "request_id": call.name,
            "model": self._model,
            "token_ids": prompt_token_ids,
            "sampling_params": _parameters(sampling),
        }
        self._calls[self._client.begin(GENERATE, body)] = call

    def step(self) -> tuple[int, list[Finished]]:
        """Wait until an answer is here, or for `SECONDS_OF_A_STEP`. Tokens are counted with the request they finish."""
        done, _ = wait(self._calls, SECONDS_OF_A_STEP, FIRST_COMPLETED)
        if self._recorder is not None:
            self._take()
        finished = [self._finish(self._calls.pop(call), call) for call in done]
        return sum(len(one.token_ids) for one in finished), finished

    def _take(self) -> None:
        """Fetch what the workers have recorded, of our requests."""
        heard = self.heard(str(self._recorder))
        heard["requests"] = [name.removeprefix(NAMED) for name in heard["requests"]]
        self._recordings.take(heard, {call.name for call in self._calls.values()})

    def _finish(self, call: _Call, future: Future[Any]) -> Finished:
        try:
            answer = future.result()
        except Refused as error:
            mend = f": a server needs {START}" if error.status in (403, 404) else ""
            raise UserError(f"{error}{mend}") from error
        try:
            done = finished(call.request_id, answer, drafts=self._settings.method != "none")
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._client.url}{GENERATE}: an answer without {error}: is it vLLM's?") from error
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
        for name, count in self._ask(ask_counts).items():
            setattr(counted, name, count)
        missing = self._settings.k - len(counted.num_accepted_tokens_per_pos)
        counted.num_accepted_tokens_per_pos += [0] * missing
        return counted

    def close(self) -> None:
        """Drop the connections, which ends what still runs on the server; the server itself goes on."""
        if self._closed:
            return
        self._closed = True
        with suppress(Exception):  # a server that is gone listens to nobody
            self.unlisten_all()
        self._client.close()
        self._calls.clear()


def finished(request_id: str, answer: dict[str, Any], drafts: bool) -> Finished:
    """A request's answer in our terms. Raises `UserError` where the server tells no steps, KeyError and its like for
    an answer of another shape.
    """
    choice = answer["choices"][0]
    tokens: list[int] = choice["token_ids"]
    told = (answer.get("metrics") or {}).get("speculative_decoding") or {}
    drafted, accepted = told.get("per_step_drafted"), told.get("per_step_accepted")
    if drafts and len(tokens) > 1 and (drafted is None or accepted is None):
        raise UserError(f"the server tells no verify steps: it needs {START}")
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    return Finished(
        request_id=request_id,
        token_ids=tokens,
        finish_reason=str(choice["finish_reason"]),
        stop_reason=choice.get("stop_reason"),
        steps=steps_of(len(tokens), drafted or [], accepted or []),
        cached_tokens=details.get("cached_tokens") or 0,
    )


def with_text(done: Finished, recorded: NDArray[np.float32] | None) -> Finished:
    """A replayed request: each step commits one token, and the record says which place of the text it is of."""
    drafted = [step.drafted for step in done.steps if step.drafted]
    if recorded is None and drafted:
        return done
    places = [] if recorded is None else recorded[:, 1, 0].tolist()
    steps = replayed_steps([1] * len(done.token_ids), drafted, places)
    return done if steps is None else replace(done, steps=steps, recorded=recorded)


def steps_of(tokens: int, drafted: list[int], accepted: list[int]) -> list[Step]:
    """The steps of a request of so many `tokens`, the prefill's among them, from what each verified.

    A step commits 1 + A tokens, the last what is left. Tokens beyond those are from steps without drafts; where these
    were is not told: they are put last.
    """
    left, steps = max(tokens - 1, 0), []
    for verified, kept in zip(drafted, accepted, strict=True):
        committed = min(1 + kept, left)
        steps.append(Step(verified, kept, committed))
        left -= committed
    return steps + [Step(0, 0, 1)] * left


def tokenizer_of(order: Order) -> Any:
    """The target's tokenizer, of this machine: prompts are sent as token ids. Raises `UserError`."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UserError("transformers is not installed: it brings the target's tokenizer") from error
    target = order.target
    if target.source == "zoo":
        target = catalog.fetch(catalog.Pair(target=target, draft=None)).target
    try:
        return AutoTokenizer.from_pretrained(
            target.model, revision=target.revision, trust_remote_code=order.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(f"--target {target.name}: its tokenizer cannot be loaded: {error}".split("\n")[0]) from error


def _arguments(order: Order) -> dict[str, Any]:
    if unknown := sorted(order.engine_args.keys() - ARGUMENTS.keys()):
        raise UserError(f"--engine-arg {unknown[0]}: of a server there are {', '.join(ARGUMENTS)}")
    if "url" not in order.engine_args:
        raise UserError("--engine server: where is it? --url http://127.0.0.1:8000, say")
    return ARGUMENTS | order.engine_args


def _refuse(order: Order) -> None:
    """Raises `UserError` for what no server can be asked."""
    if order.forced is not None:
        raise UserError("--engine server: a running server takes no forced acceptance")
    if order.prefix_caching:
        raise UserError("--prefix-caching: cannot be measured through a server, whose filled-up steps are not told")


def _check(order: Order, facts: Facts) -> None:
    """Raises `UserError` where the server cannot do what `order` asks and no later check would say so."""
    if order.draft is None and facts.method != "none":
        raise UserError(f"the server drafts ({facts.method}); the target alone needs a server without a drafter")
    if order.draft is not None and facts.method != order.draft.method:
        raise UserError(f"--draft {order.draft.name}: is {order.draft.method}, the server drafts with {facts.method}")


def _served(client: Client, name: str | None) -> str:
    """The name of the model to ask for. Raises `UserError`."""
    names = [str(model["id"]) for model in client.get("/v1/models")["data"]]
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        return str(name)
    mend = f"--engine-arg model={name}: is not there" if name else "name one with --engine-arg model=NAME"
    raise UserError(f"{client.url} serves {', '.join(names) or 'nothing'}: {mend}")


def _parameters(sampling: Sampling) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": sampling.max_tokens,
        "min_tokens": 0,
        "seed": sampling.seed,
        "ignore_eos": False,
        "detokenize": False,
        "extra_args": None if sampling.replay is None else {TEXT: list(sampling.replay)},
    }
