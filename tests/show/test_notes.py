"""Notes below a run's table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from speceval.show import notes, tuning


@pytest.mark.parametrize(
    ("device", "runner", "says"), [("cpu", "V2", True), ("cuda", "V2", False), ("cpu", "V1", False)]
)
def test_times_of_interpreted_kernels_are_called_none_of_vllms(device: str, runner: str, says: bool) -> None:
    facts = SimpleNamespace(device=device, runner=runner)
    meta: Any = SimpleNamespace(
        segments=[SimpleNamespace(tokens=100)],
        wall_seconds=2.0,
        engine_seconds=2.0,
        spec=SimpleNamespace(batch=4),
        fingerprint=SimpleNamespace(engine=facts),
    )
    line = notes.speed(meta)
    assert line.startswith("50 tokens a second, 4 requests at once") and ("no times of vLLM's" in line) == says
    tuned = {"device": device, "runner": runner, "acceptance": {}, "stops_paying_at_batch": None, "confirmed": []}
    lines = tuning.lines(tuned | {"unconfirmed": [], "by_batch_size": {}})
    assert any("no times of vLLM's" in line for line in lines) == says
