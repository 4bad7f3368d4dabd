"""Whoever waits for an engine in another process hears of its death, before there is an `LLM`, too."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from speceval.engines.vllm import watchdog


def test_a_question_that_vllm_asks_while_it_starts_is_answered_when_the_engine_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.engine.core_client import MPClient
    from vllm.v1.engine.exceptions import EngineDeadError

    monitored: list[Any] = []
    monkeypatch.setattr(MPClient, "start_engine_core_monitor", monitored.append)
    own = MPClient.start_engine_core_monitor
    client = MPClient.__new__(MPClient)
    answer: Future[Any] = Future()
    client.resources, client.utility_results = SimpleNamespace(engine_dead=False), {0: answer}
    with watchdog.watching():
        client.start_engine_core_monitor()
    assert MPClient.start_engine_core_monitor is own and monitored == [client]
    with pytest.raises(TimeoutError):
        answer.result(timeout=2 * watchdog.SECONDS)
    client.resources.engine_dead = True
    with pytest.raises(EngineDeadError):
        answer.result(timeout=30)


def test_a_worker_that_misses_another_tells_of_a_dead_engine_and_no_other_error_does() -> None:
    gone = "Worker failed with error '[pair.cc:537] Read error [127.0.0.1]:5026: Connection reset by peer. GLHF!', see"
    assert watchdog.of_a_dead_engine(RuntimeError(gone))
    assert not watchdog.of_a_dead_engine(RuntimeError("Worker failed with error 'no such K'"))
    assert not watchdog.of_a_dead_engine(RuntimeError("the hub: Connection reset by peer"))
