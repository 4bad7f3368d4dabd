"""What listeners keep until it is drained."""

from __future__ import annotations

import torch
from stand_ins import unpacked

from vllm_patches.taps.recorder import Recorder


def test_drained_in_order_once() -> None:
    recorder = Recorder()
    recorder.add(["a", "b"], [2, 1], torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    recorder.add(["b"], [1], torch.tensor([[7.0], [8]]))
    drained = recorder.drain()
    assert (drained["requests"], drained["counts"]) == (["a", "b", "b"], [2, 1, 1])
    assert unpacked(drained).tolist() == [[1, 2, 3, 7], [4, 5, 6, 8]]
    assert recorder.drain() == {"requests": [], "counts": [], "values": b""}


def test_values_of_half_precision_come_back_as_float32() -> None:
    recorder = Recorder()
    recorder.add(["a"], [1], torch.tensor([[0.5], [0.25]], dtype=torch.bfloat16))
    assert unpacked(recorder.drain()).tolist() == [[0.5], [0.25]]


def test_no_more_steps_are_kept_than_allowed_and_the_oldest_go() -> None:
    few, all_ = Recorder(most=3), Recorder(most=None)
    for number in range(10):
        for recorder in (few, all_):
            recorder.add([str(number)], [1], torch.full((2, 1), float(number)))
    assert few.drain()["requests"] == ["7", "8", "9"]
    assert all_.drain()["requests"] == [str(number) for number in range(10)]


def test_requests_without_drafts_are_not_kept() -> None:
    recorder = Recorder()
    recorder.add(["a", "b", "c"], [0, 2, 0], torch.ones(2, 2))
    recorder.add(["a", "c"], [0, 0], torch.ones(2, 0))
    drained = recorder.drain()
    assert (drained["requests"], drained["counts"]) == (["b"], [2]) and unpacked(drained).shape == (2, 2)
