"""From what a worker drained, a mixture of requests' steps, to one array for each request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from speceval.engines.vllm.recordings import Recordings

NAN = float("nan")
SUFFIX = "-0a1b2c3d"


def drained(*steps: tuple[str, list[float]]) -> dict[str, Any]:
    """As `overlap.Recorder.drain`, from (vLLM's name, r of each draft); alpha is r / 2."""
    r = np.array([value for _, values in steps for value in values], np.float32)
    return {
        "requests": [name for name, _ in steps],
        "counts": [len(values) for _, values in steps],
        "values": np.stack([r, r / 2]).astype(np.float32).tobytes(),
    }


def ratios(found: np.ndarray | None) -> list[list[float]]:
    assert found is not None and found.dtype == np.float32
    np.testing.assert_array_equal(found[:, 1], found[:, 0] / 2)
    return np.nan_to_num(found[:, 0], nan=-1).round(3).tolist()


STEPS = (
    ("a" + SUFFIX, [0.1, 0.2]),
    ("b" + SUFFIX, [0.3, 0.4, 0.5]),
    ("b" + SUFFIX, [0.6]),
    ("a" + SUFFIX, [0.7, 0.8]),
)


def test_interleaved_requests_are_told_apart_and_short_drafts_are_filled_with_nan() -> None:
    recordings = Recordings()
    recordings.take(drained(*STEPS), {"a": 1, "b": 2})
    assert ratios(recordings.pop("b", [3, 1], 3)) == pytest.approx(np.array([[0.3, 0.4, 0.5], [0.6, -1, -1]]))
    assert ratios(recordings.pop("a", [2, 2], 3)) == pytest.approx(np.array([[0.1, 0.2, -1], [0.7, 0.8, -1]]))
    assert recordings.pop("a", [2, 2], 3) is None  # taken once


@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2, 3)])
def test_drains_in_pieces_equal_one(cuts: tuple[int, ...]) -> None:
    whole, pieces = Recordings(), Recordings()
    whole.take(drained(*STEPS), ["a", "b"])
    for low, high in zip((0, *cuts), (*cuts, len(STEPS)), strict=True):
        pieces.take(drained(*STEPS[low:high]), ["a", "b"])
    pieces.take(drained(), ["a", "b"])
    for name, counts in (("a", [2, 2]), ("b", [3, 1])):
        np.testing.assert_array_equal(whole.pop(name, counts, 3), pieces.pop(name, counts, 3))


def test_names_that_look_like_vllms_own_stay_what_they_are() -> None:
    """Ours may end in a dash and eight characters too, and vLLM may keep a name as it is."""
    ours = "conversation-12345678"
    recordings = Recordings()
    recordings.take(drained((ours + SUFFIX, [0.1]), (ours, [0.2]), ("conversation" + SUFFIX, [0.3])), [ours])
    assert ratios(recordings.pop(ours, [1, 1], 1)) == pytest.approx(np.array([[0.1], [0.2]]))


def test_requests_that_are_not_ours_are_dropped() -> None:
    recordings = Recordings()
    recordings.take(drained(("warm-up" + SUFFIX, [0.1]), ("a" + SUFFIX, [0.2])), ["a"])
    assert recordings.pop("warm-up", [1], 1) is None
    assert ratios(recordings.pop("a", [1], 1)) == pytest.approx(np.array([[0.2]]))


def test_a_name_that_is_used_again_starts_anew() -> None:
    recordings = Recordings()
    recordings.take(drained(("a" + SUFFIX, [0.1])), ["a"])
    recordings.pop("a", [1], 1)
    recordings.take(drained(("a-ffffffff", [0.9])), ["a"])
    assert ratios(recordings.pop("a", [1], 1)) == pytest.approx(np.array([[0.9]]))


def test_steps_without_drafts_and_padded_steps_are_left_out() -> None:
    recordings = Recordings()
    recordings.take(drained(("a", [NAN, NAN]), ("a", [0.1, 0.2]), ("a", []), ("a", [0.3, NAN])), ["a"])
    assert ratios(recordings.pop("a", [2, 2], 2)) == pytest.approx(np.array([[0.1, 0.2], [0.3, -1]]))


def test_steps_after_the_last_are_left_out() -> None:
    recordings = Recordings()
    recordings.take(drained(("a", [0.1, 0.2]), ("a", [0.3]), ("a", [0.4, 0.5])), ["a"])
    assert ratios(recordings.pop("a", [2, 1], 2)) == pytest.approx(np.array([[0.1, 0.2], [0.3, -1]]))


@pytest.mark.parametrize("drafted", [[2], [1, 2], [2, 2], [2, 1, 1], []])
def test_a_record_of_other_steps_is_none(drafted: list[int]) -> None:
    recordings = Recordings()
    recordings.take(drained(("a", [0.1]), ("a", [0.3])), ["a"])
    assert recordings.pop("a", drafted, 2) is None


def test_a_greedy_request_has_no_record() -> None:
    recordings = Recordings()
    recordings.take(drained(("a", [NAN, NAN]), ("a", [NAN, NAN])), ["a"])
    assert recordings.pop("a", [2, 2], 2) is None and recordings.pop("never seen", [2], 2) is None
