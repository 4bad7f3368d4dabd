"""Ask the worker processes, where vLLM samples, which patches are active, what they obey and what they counted.

Usage: `LLM(..., worker_extension_cls=EXTENSION)`, then `ask(llm)`. Only strings and plain data cross between processes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vllm_patches.counters import COUNTS
from vllm_patches.settings import draft_truncation
from vllm_patches.state import PatchStatus, Switches, disobeyed, status, switches

EXTENSION = "vllm_patches.worker.Extension"
"""Value of vLLM's `worker_extension_cls`."""
TEXT = "replay"
"""Key of a request's `SamplingParams.extra_args`: the token ids that it is to emit (`vllm_patches.replay`)."""


class Extension:
    """Mixed by vLLM into its worker class."""

    def patch_status(self) -> list[dict[str, str]]:
        """`status()` of this worker process as plain dictionaries, which vLLM can send between processes."""
        return [asdict(row) for row in status()]

    def patch_switches(self) -> dict[str, str | None]:
        """`switches()` of this worker process."""
        return dict(switches())

    def engine_settings(self) -> dict[str, Any]:
        """The settings that move acceptance, as this worker process has them, for every drafting method."""
        import torch

        config: Any = self.vllm_config  # type: ignore[attr-defined]
        speculative, model, cache = config.speculative_config, config.model_config, config.cache_config
        scheduler, parallel = config.scheduler_config, config.parallel_config
        return {
            "torch": str(torch.__version__),  # a class of its own, which vLLM does not send
            "device": self.device.type,  # type: ignore[attr-defined]
            "runner": "V2" if config.use_v2_model_runner else "V1",
            "method": getattr(speculative, "method", None),
            "k": getattr(speculative, "num_speculative_tokens", 0),
            "draft_sample_method": getattr(speculative, "draft_sample_method", None),
            "rejection_sample_method": getattr(speculative, "rejection_sample_method", None),
            "draft_truncation": draft_truncation(config) and not config.use_v2_model_runner,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": model.quantization,
            "kv_cache_dtype": str(cache.cache_dtype),
            "max_model_len": usable_context(config),
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "async_scheduling": bool(scheduler.async_scheduling),
            "prefix_caching": bool(cache.enable_prefix_caching),
            "enforce_eager": bool(model.enforce_eager),
            "tensor_parallel": parallel.tensor_parallel_size,
            "pipeline_parallel": parallel.pipeline_parallel_size,
            "data_parallel": parallel.data_parallel_size,
        }

    def draft_counts(self) -> dict[str, int]:
        """The worker's verify steps since its start, by how their drafts were verified (`vllm_patches.counters`)."""
        return dict(COUNTS)

    def record_overlap(self, on: bool) -> None:
        """Record r and alpha of every sampled draft from now on, or no longer (`vllm_patches.overlap`)."""
        from vllm_patches import overlap

        overlap.stop()
        if on:
            self.overlap_recorder = overlap.start(self.model_runner)  # type: ignore[attr-defined]

    def start_replay(self) -> None:
        """Replay the requests that name a text from now on (`vllm_patches.replay`); drained as the overlap is."""
        from vllm_patches import overlap, replay

        overlap.stop()
        self.overlap_recorder = replay.start(self.model_runner)  # type: ignore[attr-defined]

    def drain_overlap(self) -> dict[str, Any]:
        """What was recorded since the last call: `overlap.Recorder.drain`."""
        drained: dict[str, Any] = self.overlap_recorder.drain()
        return drained


def usable_context(config: Any) -> int:
    """Longest sequence that drafts can be made for: past the drafter's limit vLLM drafts nothing, batch-wide."""
    drafter = getattr(config.speculative_config, "draft_model_config", None)
    limits = [config.model_config.max_model_len, getattr(drafter, "max_model_len", None)]
    return min(limit for limit in limits if limit)


def ask(llm: Any) -> list[PatchStatus]:
    """The rows of all workers of `llm`, a vllm.LLM built with `worker_extension_cls=EXTENSION`, in one list.

    Raises what vLLM raises when the extension is missing.
    """
    return [PatchStatus(**row) for worker in llm.collective_rpc("patch_status") for row in worker]


def ask_settings(llm: Any) -> list[dict[str, Any]]:
    """`Extension.engine_settings` of each worker of `llm`."""
    return list(llm.collective_rpc("engine_settings"))


def ask_disobedience(llm: Any, asked: Switches) -> str:
    """What a worker of `llm` did other than the environment `asked` for (`state.disobeyed`); empty if all obeyed."""
    rows = [[PatchStatus(**row) for row in worker] for worker in llm.collective_rpc("patch_status")]
    return disobeyed(asked, zip(llm.collective_rpc("patch_switches"), rows, strict=True))


def record(llm: Any, on: bool) -> None:
    """Record r and alpha of every sampled draft of `llm`, a vllm.LLM built with `worker_extension_cls=EXTENSION`.

    Off: undo what an engine that ran before in the same process may have left.
    """
    llm.collective_rpc("record_overlap", args=(on,))


def start_replay(llm: Any) -> None:
    """Replay, in `llm`, the requests that name a text (`vllm_patches.replay`) and record what would be kept."""
    llm.collective_rpc("start_replay")


def drain(llm: Any) -> dict[str, Any]:
    """`Extension.drain_overlap` of the worker that samples; tensor-parallel ranks record the same."""
    drained: list[dict[str, Any]] = llm.collective_rpc("drain_overlap")
    return next((recorded for recorded in drained if recorded["requests"]), drained[0])


def ask_counts(llm: Any) -> dict[str, int]:
    """`Extension.draft_counts` of the first worker of `llm`: ranks of one replica count the same steps."""
    return dict(llm.collective_rpc("draft_counts")[0])
