"""vLLM in this process, through `vllm.LLM`: requests are fed as others finish, and each step is recorded."""

from __future__ import annotations

import gc
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from speceval.catalog.schema import Target
from speceval.engines.base import Engine, Finished, Order, Parsed, Piece, Sampling
from speceval.engines.vllm import answers, listing, loading, model_runner, start, watchdog
from speceval.engines.vllm.align import align_steps, is_padded, replayed_steps
from speceval.engines.vllm.listening import Listening
from speceval.engines.vllm.recordings import Recordings, pieces
from speceval.engines.vllm.serving import Server
from speceval.errors import UserError, meant
from speceval.store.schema import Counters, Facts, PatchState
from vllm_patches.state import TEXT, merged, switches
from vllm_patches.versions import DISTRIBUTIONS
from vllm_patches.worker import (
    COUNT,
    OVERLAP,
    REPLAY,
    Disagreement,
    ask,
    ask_counts,
    ask_disobedience,
    ask_loading,
    ask_settings,
    drain_states,
    draw_drafts,
    forget_drafts,
    start_states,
    stop_states,
    stop_tap,
    swap_drafter,
)

WARM_UP_TOKENS = 8

SECONDS_TO_STOP = 30.0
"""For an engine in another process: it waits five seconds for its workers, and would be killed after as many."""

DRAIN_STEPS = 1000
"""Engine steps after which recordings are fetched though no request is done: well below `recorder.MOST_STEPS`."""


class OfflineEngine(Listening, Engine):
    """A `vllm.LLM` driven step by step, so that the batch stays full and every step is seen.

    With `record` r and alpha of every sampled draft are kept (`vllm_patches.taps.overlap`), with `replay` requests name
    their text (`vllm_patches.taps.replay`). Raises `UserError` when vLLM refuses the configuration.
    """

    packages = DISTRIBUTIONS
    variables = start.CPU_VARIABLES
    installation = start.HOW_TO_INSTALL
    without_effect = start.WITHOUT_EFFECT
    shortest_prompt = 2  # the first step of a shorter one is padded with drafts that nobody made

    def __init__(self, order: Order) -> None:
        self.version = start.require_vllm()
        self._order = order
        arguments = start.llm_arguments(order, self.version)
        start.set_environment(order.target, order.engine_args)
        self._restore_environment = model_runner.choose(order.runner, self.version)
        with uncollected():
            from vllm import LLM, SamplingParams
            from vllm.sampling_params import RequestOutputKind

        look_through_anything()
        try:
            _check_parts(order.engine_args)
            with start.measured(), set_aside(), watchdog.watching():
                self.llm = LLM(**arguments)
        except Exception as error:  # whatever a configuration made it stumble over
            self._restore_environment()
            traceback.print_exc()  # into the engine's log
            raise UserError(f"vLLM could not start: {_why(error)}") from error
        self._engine = self.llm.llm_engine
        self._config = self._engine.vllm_config
        self._sampling_params, self._delta = SamplingParams, RequestOutputKind.DELTA
        self._commits: dict[str, list[int]] = {}
        self._tokens: dict[str, list[int]] = {}
        self._recorder: str | None = None
        self._recordings = Recordings()
        self._undrained = 0
        self._taps = set()
        self._closed = False
        self._read: set[str] | None = None
        """Requests since the states of their tokens are kept; None: they are not."""
        try:
            self._check_workers()
        except BaseException:
            self.close()
            raise

    def _check_workers(self) -> None:
        """Read back what the workers obey, and have them record what is to be recorded. Raises `UserError`."""
        self.tokenizer = answers.tokenizer(self.llm)
        if wrong := self._ask(ask_disobedience, switches()):
            raise UserError(f"{wrong}: nothing was measured")
        self._loaded = self._ask(ask_loading)
        loading.check(self._loaded, str(start.checkpoint(self._order.draft)))
        self.max_model_len = int(agreed(self._ask(ask_settings))["max_model_len"])
        self._ask(stop_tap)  # an engine that ran before in this process may have left some
        self._record_for(self._order)
        if self._order.draft is not None and self._config.use_v2_model_runner:
            self.listen(COUNT)

    def _record_for(self, order: Order) -> None:
        """Have the workers record what an order wants recorded, and nothing else of that kind. Raises `UserError`."""
        wanted = REPLAY if order.replay else OVERLAP if order.record else None
        if wanted == self._recorder:
            return
        if self._recorder is not None:
            self.unlisten(self._recorder)
        self._recorder = None
        if wanted is not None:
            self.listen(wanted)
        self._recorder = wanted

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """What the workers answer to a question of `vllm_patches.worker`. Raises `UserError`."""
        with _failing_in_one_line():
            return question(self.llm, *arguments)

    @classmethod
    def require(cls) -> None:
        """Raise `UserError` where vLLM is missing, or of a version that is not supported."""
        start.require_vllm()

    @classmethod
    def defaults(cls, target: Target, tokens: int = 0) -> dict[str, Any]:
        """What `start.default_arguments` says."""
        return start.default_arguments(target, tokens)

    @classmethod
    def arguments(cls) -> set[str]:
        """Those of the installed vLLM."""
        return start.argument_names()

    @classmethod
    def ledger(cls) -> list[dict[str, str]]:
        """The ledger of `vllm_patches`, each patch with its state in this process."""
        return listing.ledger()

    @classmethod
    def serving(cls, order: Order, ranges: Sequence[tuple[int, int, int]] = ()) -> dict[str, Any]:
        """What `vllm serve` takes: `speculative_config`, and what drafters of ours need."""
        if order.draft is None or (ranges and not start.has_ranges()):
            return {}
        arguments = start.drafter_arguments(order.draft, order, start.require_vllm())
        if ranges:
            arguments["speculative_config"][start.RANGES] = [list(one) for one in ranges]
        return arguments

    @classmethod
    def server(cls, order: Order, host: str, port: int, name: str | None) -> Server:
        """Start vLLM's own server."""
        return Server(order, host, port, name)

    @classmethod
    def swaps(cls, before: Order, after: Order) -> bool:
        """Whether the orders differ in nothing but the drafter's weights."""
        return start.swappable(before, after)

    def swap(self, order: Order) -> bool:
        """Load the weights of another drafter into the running engine, draw and record as asked; caches of the one
        before are cleared.
        """
        if self._closed or self._engine.has_unfinished_requests() or not start.swappable(self._order, order):
            return False
        before, after = start.checkpoint(self._order.draft), start.checkpoint(order.draft)
        try:
            if before and after and before != after and (reason := swap_drafter(self.llm, before, after)):
                print(f"no swap of {before} for {after}: {reason}", flush=True)  # into the engine's log
                return False
            if order.prefix_caching and not self.llm.reset_prefix_cache():
                return False
            self._loaded = ask_loading(self.llm)
            loading.check(self._loaded, after)
            if self._order.drafting != order.drafting and (reason := draw_drafts(self.llm, order.drafting)):
                print(f"no {order.drafting} drafts: {reason}", flush=True)
                return False
            self._record_for(order)
        except Exception:  # a worker that is gone, or weights that an engine of their own will name
            traceback.print_exc()
            return False
        self._order, self._recordings, self._undrained = order, Recordings(), 0
        return True

    def log_probabilities(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """The target's log-probability of each token of each sequence, but the first, given those before it."""
        params = self._sampling_params(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        with _failing_in_one_line():
            outputs = self.llm.generate([{"prompt_token_ids": list(s)} for s in sequences], params, use_tqdm=False)
        return [
            [row[token].logprob for row, token in zip(output.prompt_logprobs[1:], sequence[1:], strict=True)]
            for output, sequence in zip(outputs, sequences, strict=True)
        ]

    def keep_states(self, layers: Sequence[int]) -> None:
        """Keep the target's last hidden state, and those after `layers`, of every token from now on.

        Raises `UserError` where a worker cannot.
        """
        if reason := self._ask(start_states, layers):
            raise UserError(reason)
        self._read = set()

    def take_states(self) -> list[Piece]:
        """What was kept since the last call, of requests in flight or just finished."""
        return pieces(self._ask(drain_states), self._read or ())

    def facts(self) -> Facts:
        """The settings as the worker processes have them. Raises `UserError` where two workers differ.

        `generation_config` is the frontend's: it makes the requests.
        """
        generation = self._config.model_config.generation_config
        return Facts(vllm=self.version, generation_config=generation, **agreed(self._ask(ask_settings)))

    def patches(self) -> list[PatchState]:
        """State of each ledger row of its model runner, asked of the workers: active only if it is in all of them."""
        runner = "V2" if self._config.use_v2_model_runner else "V1"
        run = (runner, "none" if self._order.draft is None else self._order.draft.method)
        return [listing.as_state(status) for status in merged(self._ask(ask)) if listing.concerns(status.id, *run)]

    def drafter(self) -> dict[str, Any]:
        """What vLLM decided while it loaded the drafter (`vllm_patches.loading`)."""
        return dict(self._loaded["decided"])

    def notes(self) -> list[str]:
        """The same in words."""
        return loading.notes(self._loaded)

    def parser(self, template_kwargs: Mapping[str, Any]) -> Callable[[Sequence[int]], Parsed] | None:
        """The one of `--engine-arg reasoning_parser=NAME`."""
        name = self._config.structured_outputs_config.reasoning_parser
        return answers.parser(name, self.tokenizer, template_kwargs) if name else None

    def missing_patches(self) -> list[str]:
        """One line for each patch that the order needs and that is not active where the engine samples."""
        return start.missing_patches(self.patches(), self.facts(), self._order.temperature)

    def warm_up(self) -> None:
        """Run a few tokens, so that nothing of the start-up is timed, counted or remembered."""
        self.submit("warm-up", [0, 1, 2, 3], Sampling(0.0, 1.0, 0, WARM_UP_TOKENS, None))
        while self._engine.has_unfinished_requests():
            self.step()
        self._ask(forget_drafts)

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a request. Every sampling parameter is set: a checkpoint's generation_config has no say."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        if len(prompt_token_ids) < self.shortest_prompt:
            raise UserError(f"a prompt of {len(prompt_token_ids)} tokens: at least {self.shortest_prompt} are needed")
        params = self._sampling_params(
            n=1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=0.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            repetition_penalty=1.0,
            max_tokens=sampling.max_tokens,
            min_tokens=0,
            seed=sampling.seed,
            ignore_eos=False,
            detokenize=False,
            output_kind=self._delta,
            extra_args=None if sampling.replay is None else {TEXT: list(sampling.replay)},
        )
        self._commits[request_id], self._tokens[request_id] = [], []
        if self._read is not None:
            self._read.add(request_id)
        with _failing_in_one_line():
            self._engine.add_request(request_id, {"prompt_token_ids": prompt_token_ids}, params)

    def step(self) -> tuple[int, list[Finished]]:
        """One engine step: tokens committed by all requests, and those that finished."""
        committed, finished = 0, []
        with _failing_in_one_line():
            outputs = self._engine.step()
            self._undrained += 1
            due = self._undrained == DRAIN_STEPS or any(output.finished for output in outputs)
            if self._recorder is not None and due:
                self._recordings.take(self.heard(self._recorder), self._commits)
                self._undrained = 0
        for output in outputs:
            completion, name = output.outputs[0], output.request_id
            if completion.token_ids:
                committed += len(completion.token_ids)
                self._commits[name].append(len(completion.token_ids))
                self._tokens[name].extend(completion.token_ids)
            if output.finished:
                finished.append(self._finish(output))
        return committed, finished

    def _finish(self, output: Any) -> Finished:
        completion, name = output.outputs[0], output.request_id
        metrics = completion.spec_decode_metrics
        commits = self._commits.pop(name)
        drafted, accepted = (metrics.per_step_drafted, metrics.per_step_accepted) if metrics else ([], [])
        cached, k = output.num_cached_tokens or 0, getattr(self._config.speculative_config, "num_speculative_tokens", 0)
        padded = is_padded(len(output.prompt_token_ids) - cached, k, commits, drafted, accepted)
        drafted, accepted = drafted[padded:], accepted[padded:]
        recorded = None if self._recorder is None else self._recordings.pop(name, drafted, k)
        steps = None
        if self._recorder == REPLAY and (recorded is not None or not drafted):
            steps = replayed_steps(commits, drafted, [] if recorded is None else recorded[:, 1, 0].tolist())
            recorded = None if steps is None else recorded
        return Finished(
            request_id=name,
            token_ids=self._tokens.pop(name),
            finish_reason=str(completion.finish_reason),
            stop_reason=completion.stop_reason,
            steps=align_steps(commits, drafted, accepted) if steps is None else steps,
            cached_tokens=cached,
            padded_steps=int(padded),
            recorded=recorded,
        )

    def in_flight(self) -> list[list[int]]:
        """Tokens committed at each step so far by each request that is not finished, the prefill's first."""
        return [list(commits) for commits in self._commits.values()]

    def counters(self) -> Counters:
        """vLLM's own totals since the engine started, and the worker's."""
        counters = Counters()
        for name, count in self._ask(ask_counts).items():
            setattr(counters, name, count)
        for metric in self.llm.get_metrics():
            name = metric.name.removeprefix("vllm:")
            if name == "spec_decode_num_accepted_tokens_per_pos":
                counters.num_accepted_tokens_per_pos = [int(value) for value in metric.values]
            elif name.removeprefix("spec_decode_") in asdict(counters):
                setattr(counters, name.removeprefix("spec_decode_"), int(metric.value))
            elif name == "num_preemptions":
                counters.preemptions = int(metric.value)
        return counters

    def close(self) -> None:
        """Stop vLLM and its processes, and take what was put into this one out again."""
        if self._closed:
            return
        self._closed = True
        try:
            self.unlisten_all()
            if self._read is not None:
                stop_states(self.llm)
        except Exception:  # workers that are gone have no taps
            traceback.print_exc()
        try:
            with set_aside():
                shut_down(self._engine.engine_core)
        except Exception:
            traceback.print_exc()  # into the engine's log: whatever made it fail is being reported already
        self._restore_environment()
        self.llm = self._engine = self._config = None
        gc.collect()


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage meanwhile: an import leaves next to none, and vLLM brings some 5,600 modules."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@contextmanager
def set_aside() -> Iterator[None]:
    """Have collections of garbage meanwhile look at new objects alone.

    vLLM makes ten between an engine and the next, and each walks all that torch and vLLM have imported: three quarters
    of the time where the models are as small as the zoo's.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def shut_down(core: Any) -> None:
    """Shut vLLM's client of an engine down; one in another process gets the time to stop its workers in order."""
    if "timeout" in inspect.signature(core.shutdown).parameters:
        core.shutdown(timeout=SECONDS_TO_STOP)
    else:
        core.shutdown()


def look_through_anything() -> None:
    """Have vLLM on a CPU start whatever else this process has imported.

    It looks for its kernels in every attribute of every module (vllm/triton_utils/dispatcher.py) and stumbles over what
    only pretends to have a `__dict__`: llvmlite's library, which n-gram drafts import, so that no engine could follow
    theirs; proxies of web frameworks. None of them is a kernel.
    """
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:  # versions that do not look
        return

    def has(value: Any, name: str) -> bool:
        try:
            return hasattr(value, name)
        except Exception:
            return False

    def attributes(value: Any) -> Mapping[str, Any]:
        try:
            own = vars(value)
        except Exception:
            return {}
        return own if isinstance(own, Mapping) else {}

    dispatcher.hasattr, dispatcher.vars = has, attributes


def agreed(workers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all `workers` reported. Raises `UserError` naming the first that two of them differ in."""
    first = workers[0]
    for number, settings in enumerate(workers):
        for name, value in settings.items():
            if value != first[name]:
                raise UserError(f"worker {number} has {name}={value!r}, worker 0 {first[name]!r}: nothing was measured")
    return first


@contextmanager
def _failing_in_one_line() -> Iterator[None]:
    """Whatever a running engine raises becomes a `UserError`; the rest goes into its log."""
    try:
        yield
    except UserError:
        raise
    except Disagreement as error:
        raise UserError(f"{error}: what this engine samples cannot be trusted") from error
    except Exception as error:
        traceback.print_exc()
        raise UserError(
            f"vLLM failed while generating: {_why(error)} (details in engine.log); what was finished is stored, "
            "the same command resumes"
        ) from error


def _check_parts(arguments: dict[str, Any]) -> None:
    """Raise `UserError` for a key of a nested argument that vLLM has no field for: of some it drops them unsaid."""
    for name, value in arguments.items():
        if not isinstance(value, dict):
            continue
        from vllm import config

        part = getattr(config, "".join(word.capitalize() for word in name.split("_")), None)
        fields = [field.name for field in dataclass_fields(part)] if is_dataclass(part) else list(value)
        if unknown := [key for key in value if key not in fields]:
            raise UserError(f"--engine-arg {name}: vLLM has no '{unknown[0]}' there{meant(unknown[0], fields)}")


_OF_OURS = re.compile(r"Failed to instantiate custom proposer class '[^']*': (.*)\. The class constructor .*")
"""What vLLM says around an error of a drafter that is ours (`vllm_patches.drafters`), which is the whole reason."""
_LONG_LIST = re.compile(r"(dict_keys\()?\[[^\[\]]{200,}\]\)?")
"""All that vLLM would have taken: hundreds of architectures, say."""


def _why(error: Exception) -> str:
    return "a process of its engine has ended" if watchdog.of_a_dead_engine(error) else _reason(error)


def _reason(error: BaseException) -> str:
    """The most telling line of a vLLM start-up error: pydantic wraps the message in several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("Value error", "Assertion failed"))]
    if not telling and len(lines) > 2 and "validation error" in lines[0]:
        telling = [f"{lines[1]}: {lines[2]}"]  # a field, then what is wrong with it
    reason = (telling or lines or [type(error).__name__])[0].removeprefix("Value error, ").split(" [type=")[0]
    return _LONG_LIST.sub("[…]", _OF_OURS.sub(r"\1", reason))
