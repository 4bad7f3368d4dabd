"""The worker process itself says which patches are active, in-process and in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_patches import LEDGER, PatchStatus, missing

pytestmark = [pytest.mark.slow, pytest.mark.engine]


def read(rows: list[dict[str, str]]) -> tuple[list[PatchStatus], dict[str, str]]:
    statuses = [PatchStatus(**row) for row in rows]
    return statuses, {row.id: row.state for row in statuses}


@pytest.mark.parametrize("name", ["patched", "multiprocess"])
def test_the_worker_reports_the_patch_active_and_a_measurement_may_go_on(engines: dict[str, Any], name: str) -> None:
    statuses, states = read(engines[name]["worker"])
    assert states["cpu-expand"] == "active"
    assert missing(statuses, device="cpu", temperature=1.0) == []


def test_the_frontend_of_a_multiprocess_engine_does_not_speak_for_its_worker(engines: dict[str, Any]) -> None:
    assert read(engines["multiprocess"]["frontend"])[1]["cpu-expand"] == "not loaded"


def test_switched_off_the_worker_says_so_and_a_measurement_at_temperature_is_refused(
    engines: dict[str, Any],
) -> None:
    statuses, states = read(engines["stock"]["worker"])
    assert states["cpu-expand"] == "switched off"
    expected = [f"{patch.id}: switched off (SPECEVAL_PATCHES=0)" for patch in LEDGER if patch.runner != "V2"]
    assert missing(statuses, device="cpu", temperature=1.0) == expected
    at_0 = "v1-chunk-token: switched off (SPECEVAL_PATCHES=0)"
    assert missing(statuses, device="cpu", temperature=0.0, method="eagle3") == [at_0]
    assert missing(statuses, device="cpu", temperature=0.0, method="medusa") == []


def test_one_log_line_says_what_is_active(engines: dict[str, Any]) -> None:
    for name in ("patched", "multiprocess"):
        (line,) = [line for line in engines[name]["log"].splitlines() if "V1 runner, eagle3: patches" in line]
        assert all(patch.id in line for patch in LEDGER if not patch.methods and patch.runner != "V2"), name
    warnings = [line for line in engines["stock"]["log"].splitlines() if "vllm_patches" in line and "INFO" not in line]
    assert warnings == [], "the switch silences"
    assert "runner, eagle3: patches" not in engines["stock"]["log"]
