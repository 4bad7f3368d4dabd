"""A kernel that lockstep cannot execute: what it has written is taken back before Triton's interpreter runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vllm_patches.interpreted import simt
from vllm_patches.interpreted.simt import tl

pytest.importorskip("triton")


def half_done(out: Any, sums: Any) -> None:
    """Writes twice and adds, then says what nobody knows."""
    row = tl.program_id(0)
    tl.store(out + row, 7)
    tl.store(out + row, tl.load(out + row) + 1)
    tl.atomic_add(sums + row % 2, 3)
    tl.nothing_of_the_kind(row)


class Theirs:
    """Stands for Triton's own form of the kernel: keeps what it is given to work on."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *tensors: self.seen.extend(tensor.tolist() for tensor in tensors)


def test_what_it_has_written_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_patches.interpreted import launch

    monkeypatch.setattr(launch, "RECORD", launch.Record())
    out, sums, theirs = torch.tensor([1.0, 2.0, 3.0]).bfloat16(), torch.tensor([4, 5]), Theirs()
    launch.Interpreted(half_done, theirs)[(3,)](out, sums)
    assert theirs.seen == [[1.0, 2.0, 3.0], [4, 5]]
    assert "nothing_of_the_kind" in launch.RECORD.fallen_back["half_done"]


def test_a_launch_copies_no_tensor_it_does_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of draft logits is hundreds of megabytes, and each of a step's draws reads a few rows of it."""
    from vllm_patches.interpreted import launch

    def double(table: Any, out: Any) -> None:
        tl.store(out + tl.program_id(0), tl.load(table + tl.program_id(0)) * 2)

    copied: list[int] = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self: copied.append(self.numel()) or clone(self))
    table, out = torch.arange(1000), torch.zeros(3, dtype=torch.int64)
    launch.Interpreted(double, Theirs())[(3,)](table, out)
    assert out.tolist() == [0, 2, 4] and copied == []
    assert sum(len(places) for _, places, _ in simt.machine.written) == 3
