"""Ask the worker processes, where vLLM samples, which patches are active and what they counted.

Usage: `LLM(..., worker_extension_cls=EXTENSION)`, then `ask(llm)`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vllm_patches.counters import COUNTS
from vllm_patches.state import PatchStatus, status

EXTENSION = "vllm_patches.worker.PatchReport"
"""Value of vLLM's `worker_extension_cls`."""
TEXT = "replay"
"""Key of a request's `SamplingParams.extra_args`: the token ids that it is to emit (`vllm_patches.replay`)."""


class PatchReport:
    """Mixed by vLLM into its worker class."""

    def patch_status(self) -> list[dict[str, str]]:
        """`status()` of this worker process as plain dictionaries, which vLLM can send between processes."""
        return [asdict(row) for row in status()]

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


def ask(llm: Any) -> list[PatchStatus]:
    """The rows of all workers of `llm`, a vllm.LLM built with `worker_extension_cls=EXTENSION`, in one list.

    Raises what vLLM raises when the extension is missing.
    """
    return [PatchStatus(**row) for worker in llm.collective_rpc("patch_status") for row in worker]


def record(llm: Any, on: bool) -> None:
    """Record r and alpha of every sampled draft of `llm`, a vllm.LLM built with `worker_extension_cls=EXTENSION`.

    Off: undo what an engine that ran before in the same process may have left.
    """
    llm.collective_rpc("record_overlap", args=(on,))


def start_replay(llm: Any) -> None:
    """Replay, in `llm`, the requests that name a text (`vllm_patches.replay`) and record what would be kept."""
    llm.collective_rpc("start_replay")


def drain(llm: Any) -> dict[str, Any]:
    """`PatchReport.drain_overlap` of the worker that samples; tensor-parallel ranks record the same."""
    drained: list[dict[str, Any]] = llm.collective_rpc("drain_overlap")
    return next((recorded for recorded in drained if recorded["requests"]), drained[0])


def ask_counts(llm: Any) -> dict[str, int]:
    """`PatchReport.draft_counts` of the first worker of `llm`: ranks of one replica count the same steps."""
    return dict(llm.collective_rpc("draft_counts")[0])
