"""Workers that lost what they were told on the way."""

from __future__ import annotations

import os
from typing import Any

from vllm_patches.worker import Extension


class Unconfigured(Extension):
    """`additional_config` did not arrive."""

    def engine_settings(self) -> dict[str, Any]:
        self.vllm_config.additional_config = {}  # type: ignore[attr-defined]
        return super().engine_settings()


class OtherSwitches(Extension):
    """Another environment than the one that was set."""

    def patch_switches(self) -> dict[str, str | None]:
        os.environ["SPECEVAL_PATCHES_SKIP"] = "cpu-expand"
        return super().patch_switches()


class NoRecorder(Extension):
    """Says that it records, and does not."""

    def start_tap(self, name: str) -> str:
        return ""
