"""What an engine is told beyond vLLM's own options: keys of its `additional_config`, which vLLM takes to every worker.

What acts on a setting reads it here, from the configuration of its own process; `worker.ask_settings` reports the same
reading.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

DRAFT_TRUNCATION = "draft_truncation"
"""Whether top-k and top-p truncate q as they truncate p (default); false: temperature alone, as in stock vLLM."""
KNOWN_ANSWER = "known_answer"
"""Whether an engine with rejection_sample_method=synthetic may start. Its acceptance is what it was given, no
measurement: only `speceval selftest` asks for this, for its own engines, to see whether the given rates come back."""
TRUNCATION_SWITCH = "SPECEVAL_DRAFT_TRUNCATION"
"""Environment variable; "0" is the default of DRAFT_TRUNCATION where the configuration says nothing."""


def draft_truncation(config: Any) -> bool:
    """Whether the drafts of an engine with this VllmConfig are truncated."""
    default = os.environ.get(TRUNCATION_SWITCH, "").strip() != "0"
    return bool(_additional(config).get(DRAFT_TRUNCATION, default))


def known_answer(config: Any) -> bool:
    """Whether an engine with this VllmConfig was started to give forced rates back."""
    return _additional(config).get(KNOWN_ANSWER) is True


def _additional(config: Any) -> Mapping[str, Any]:
    given = config.additional_config  # vLLM also takes objects that it can only hash
    return given if isinstance(given, Mapping) else {}
