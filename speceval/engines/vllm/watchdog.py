"""A vLLM engine in another process that dies, and the call that would wait for it for ever.

vLLM 0.32 notices the death (`MPClient.start_engine_core_monitor` in vllm/v1/engine/core_client.py) and marks the engine
as dead, but nobody wakes the caller that waits for its next output, or for the answer to a question.
"""

from __future__ import annotations

import re
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

CLIENTS = "vllm.v1.engine.core_client"
"""Comes with `vllm.LLM`."""
SECONDS = 0.5
"""Between two looks."""


@contextmanager
def watching() -> Iterator[None]:
    """Have every client of an engine that is made meanwhile raise when its engine dies, from its first question on:
    `vllm.LLM`, which must have been imported, asks some before there is one. In one process there is no client.
    """
    client = getattr(sys.modules.get(CLIENTS), "MPClient", None)
    if client is None:
        yield
        return
    original = client.start_engine_core_monitor

    @wraps(original)
    def start_engine_core_monitor(self: Any) -> None:
        original(self)
        threading.Thread(target=_watch, args=(weakref.ref(self),), name="engine watchdog", daemon=True).start()

    client.start_engine_core_monitor = start_engine_core_monitor
    try:
        yield
    finally:
        client.start_engine_core_monitor = original


def _watch(core: weakref.ref[Any]) -> None:
    pause = threading.Event()
    while (client := core()) is not None:
        if client.resources.engine_dead:
            wake(client)
            return
        del client  # no reason for it to live
        pause.wait(SECONDS)


def wake(client: Any) -> None:
    """Raise in whoever waits for an output or an answer of a dead engine."""
    from vllm.v1.engine.exceptions import EngineDeadError

    if hasattr(client, "outputs_queue"):  # not yet: vLLM itself raises in whoever asks after the death
        client.outputs_queue.put_nowait(EngineDeadError())
    for answer in list(getattr(client, "utility_results", {}).values()):
        if not answer.done():
            answer.set_exception(EngineDeadError())


def of_a_dead_engine(error: Exception) -> bool:
    """Whether an error tells of a process that is gone: what waited for a worker's answer was "cancelled", or another
    worker was the first to notice.
    """
    told = str(error).strip()
    alone = told.startswith("Worker failed") and re.search("Connection (reset|closed) by peer", told)
    return type(error).__name__ == "EngineDeadError" or told.endswith("cancelled") or bool(alone)
