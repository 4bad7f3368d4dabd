"""Runs of a simulated engine: `speceval run` and `speceval.run` without vLLM and without weights."""

from __future__ import annotations

import pytest

from speceval import catalog
from speceval.engines.simulated import SimulatedEngine
from speceval.measure import launch
from speceval.measure.job import Job


def simulate(monkeypatch: pytest.MonkeyPatch, chance: float = 0.7) -> list[Job]:
    """Have runs measured on an engine that accepts each draft token with `chance`; returns their jobs, as they come."""
    jobs: list[Job] = []

    def start(job: Job) -> SimulatedEngine:
        jobs.append(job)
        return SimulatedEngine((chance,) * job.spec.k, batch=job.spec.batch)

    monkeypatch.setattr(launch, "start_engine", start)
    monkeypatch.setattr(catalog, "fetch", lambda pair: pair)
    monkeypatch.setattr("speceval.measure.fingerprint.weights_hash", lambda *_: "none")
    return jobs
