"""Softmax of a few rows at a time: the same values in any dtype, and in bounded memory."""

from __future__ import annotations

import pytest
import torch

from vllm_patches import pieces


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("most", [1, 14, 15, 35, 1 << 20])
def test_pieces_are_the_rows_of_the_whole_softmax(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, most: int
) -> None:
    monkeypatch.setitem(pieces.ELEMENTS, "cpu", most)
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = torch.cat([p.clone() for _, p in pieces.softmax_pieces(logits)])
    torch.testing.assert_close(whole, logits.softmax(-1, dtype=torch.float32))
    rows = [len(p) for _, p in pieces.softmax_pieces(logits)]
    assert whole.dtype == torch.float32 and rows[0] == min(5, max(1, most // 7)) and sum(rows) == 5


def test_all_pieces_share_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pieces.ELEMENTS, "cpu", 14)
    assert len({p.data_ptr() for _, p in pieces.softmax_pieces(torch.zeros(6, 7))}) == 1


def test_picked_rows_are_taken_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pieces.ELEMENTS, "cpu", 14)
    logits, picked = torch.randn(6, 7), torch.tensor([5, 0, 0, 3, 2])
    found = torch.cat([p.clone() for _, p in pieces.softmax_pieces(logits, picked)])
    torch.testing.assert_close(found, logits[picked].softmax(-1))
    assert [part.start for part, _ in pieces.softmax_pieces(logits, picked)] == [0, 2, 4]


def test_no_rows_are_no_pieces() -> None:
    assert list(pieces.softmax_pieces(torch.zeros(0, 7))) == []
