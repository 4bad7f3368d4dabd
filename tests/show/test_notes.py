"""Notes below a run's table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speceval import read_run
from speceval.show import notes, tables, tuning

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize(("device", "says"), [("cpu", True), ("cuda", False)])
def test_a_speed_up_on_a_cpu_says_what_k_and_batch_do_there(device: str, says: bool) -> None:
    stored = read_run(ROOT / "results" / "smollm2" / "lk-eagle3-T0-speedup")
    engine = stored.meta.fingerprint.engine.model_copy(update={"device": device})
    prints = stored.meta.fingerprint.model_copy(update={"engine": engine})
    run = replace(stored, meta=stored.meta.model_copy(update={"fingerprint": prints}))
    lines = [line for line in notes.of_run(run, tables.run_json(run)) if "the best K is small there" in line]
    assert len(lines) == int(says)
