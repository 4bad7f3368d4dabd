"""Which runs start an engine."""

from __future__ import annotations

import pytest

from speceval.engines.base import Engine
from speceval.measure import launch
from speceval.measure.job import Job


def started(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs whose engine is started from now on, as they come."""
    jobs: list[Job] = []
    start = launch.start_engine

    def recording(job: Job) -> Engine:
        jobs.append(job)
        return start(job)

    monkeypatch.setattr(launch, "start_engine", recording)
    return jobs
