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


class PatchReport:
    """Mixed by vLLM into its worker class."""

    def patch_status(self) -> list[dict[str, str]]:
        """`status()` of this worker process as plain dictionaries, which vLLM can send between processes."""
        return [asdict(row) for row in status()]

    def draft_counts(self) -> dict[str, int]:
        """The worker's verify steps since its start, by how their drafts were verified (`vllm_patches.counters`)."""
        return dict(COUNTS)


def ask(llm: Any) -> list[PatchStatus]:
    """The rows of all workers of `llm`, a vllm.LLM built with `worker_extension_cls=EXTENSION`, in one list.

    Raises what vLLM raises when the extension is missing.
    """
    return [PatchStatus(**row) for worker in llm.collective_rpc("patch_status") for row in worker]


def ask_counts(llm: Any) -> dict[str, int]:
    """`PatchReport.draft_counts` of the first worker of `llm`: ranks of one replica count the same steps."""
    return dict(llm.collective_rpc("draft_counts")[0])
