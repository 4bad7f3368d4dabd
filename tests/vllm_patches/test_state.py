"""What several worker processes report, as one: a patch is active only where all have it, a switch obeyed by all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_patches import state
from vllm_patches.ledger import LEDGER
from vllm_patches.state import ACTIVE, NATIVE, NOT_LOADED, OFF, PatchStatus, disobeyed, merged, missing

ON = {"SPECEVAL_PATCHES": None, "SPECEVAL_PATCHES_SKIP": None, "VLLM_PLUGINS": None}
ROW = PatchStatus("cpu-expand", "title", "target", "versions", "upstream", ACTIVE, "")
OTHER = replace(ROW, id="v1-missing-q")


def with_state(row: PatchStatus, value: str) -> PatchStatus:
    return replace(row, state=value, reason="" if value == ACTIVE else "why")


def test_a_patch_is_active_only_where_every_worker_has_it() -> None:
    for bad in (OFF, NOT_LOADED):
        for workers in ([ROW, OTHER, with_state(ROW, bad), OTHER], [with_state(ROW, bad), OTHER, ROW, OTHER]):
            rows = {row.id: row.state for row in merged(workers)}
            assert rows == {ROW.id: bad, OTHER.id: ACTIVE}
    assert [row.state for row in merged([ROW, with_state(ROW, NATIVE)])] == [ACTIVE]


def test_a_patch_that_one_worker_lacks_is_missing_and_said_once() -> None:
    rows = [with_state(replace(ROW, id=patch.id), ACTIVE) for patch in state.LEDGER]
    lost = [with_state(row, OFF) if row.id == "cpu-expand" else row for row in rows]
    assert missing(rows + rows, device="cpu", temperature=1.0) == []
    assert missing(rows + lost + lost, device="cpu", temperature=1.0) == ["cpu-expand: switched off (why)"]


@pytest.mark.parametrize(
    ("asked", "told", "states", "says"),
    [
        ({}, {}, (ACTIVE, ACTIVE), ""),
        ({}, {}, (ACTIVE, NOT_LOADED), ""),
        ({"SPECEVAL_PATCHES": "0"}, {"SPECEVAL_PATCHES": "0"}, (OFF, OFF), ""),
        ({"SPECEVAL_PATCHES_SKIP": "cpu-expand"}, {"SPECEVAL_PATCHES_SKIP": "cpu-expand"}, (OFF, ACTIVE), ""),
        # never told
        ({"SPECEVAL_PATCHES": "0"}, {}, (ACTIVE, ACTIVE), "worker 1 was started with SPECEVAL_PATCHES=None, asked"),
        ({}, {"SPECEVAL_PATCHES": "0"}, (OFF, OFF), "worker 1 was started with SPECEVAL_PATCHES='0', asked for None"),
        ({"VLLM_PLUGINS": "other"}, {}, (ACTIVE, ACTIVE), "VLLM_PLUGINS=None, asked for 'other'"),
        # told, but something else was done
        (
            {"SPECEVAL_PATCHES": "0"},
            {"SPECEVAL_PATCHES": "0"},
            (OFF, ACTIVE),
            "worker 1 has the patch v1-missing-q active, though SPECEVAL_PATCHES=0",
        ),
        (
            {"SPECEVAL_PATCHES_SKIP": "cpu-expand"},
            {"SPECEVAL_PATCHES_SKIP": "cpu-expand"},
            (ACTIVE, ACTIVE),
            "worker 1 has the patch cpu-expand active, though SPECEVAL_PATCHES_SKIP names it",
        ),
        ({}, {}, (ACTIVE, OFF), "worker 1 has the patch v1-missing-q switched off"),
    ],
)
def test_a_worker_that_obeyed_another_switch_is_named(
    asked: dict[str, str], told: dict[str, str], states: tuple[str, str], says: str
) -> None:
    """Worker 0 did as asked."""
    want = ON | asked
    right = [
        with_state(row, OFF if state.switched_off(want) or state.skipped(row.id, want) else ACTIVE)
        for row in (ROW, OTHER)
    ]
    second = [with_state(row, value) for row, value in zip((ROW, OTHER), states, strict=True)]
    found = disobeyed(want, [(want, right), (ON | told, second)])
    assert says in found and bool(says) == bool(found)


def test_a_row_of_both_runners_is_needed_on_both_and_one_of_v1_on_v1_alone() -> None:
    def needed(runner: str) -> set[str]:
        return {patch.id for patch in LEDGER if state.needed(patch, "cpu", 1.0, "mtp", runner)}

    assert needed("V2") == {"cpu-rotary"}
    assert {"cpu-rotary", "cpu-rejection", "v1-missing-q"} <= needed("V1")
