"""Repairs to vLLM's speculative decoding, applied by vLLM itself as a general plugin.

See docs/trust/what-is-patched.md.

Importing this package imports neither torch nor vLLM.
"""

from __future__ import annotations

from vllm_patches.apply import register
from vllm_patches.ledger import LEDGER, Patch
from vllm_patches.state import PatchStatus, missing, status, vllm_version

__all__ = ["LEDGER", "Patch", "PatchStatus", "missing", "register", "status", "vllm_version"]
