"""Patch `v2-sampling-states`: where the requests' top-k and top-p are (cf. vllm/v1/worker/gpu/sample/states.py).

vLLM's V2 runner tells its drafter the requests' temperatures and seeds, not what else they are sampled with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import ref

_newest: Callable[[], Any] = lambda: None  # noqa: E731


def replace(original: Callable[..., None]) -> Callable[..., None]:
    """`SamplingStates.__init__` that keeps the newest in mind: a process has one model runner, which has one."""

    @wraps(original)
    def __init__(self: Any, max_num_reqs: int, vocab_size: int) -> None:
        global _newest
        original(self, max_num_reqs, vocab_size)
        _newest = ref(self)

    return __init__


def states() -> Any:
    """vLLM's `SamplingStates` of this process; None if there are none."""
    return _newest()
