"""Tables [rows, V] that are worked on a few rows at a time. Imports torch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """A table [R, V] of which some rows at a time are asked for: a tensor, or what makes them then."""

    @property
    def shape(self) -> Sequence[int]:
        """R and V."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    def __getitem__(self, part: slice) -> Tensor:
        """Some of the rows [n, V]."""


ELEMENTS = {"cpu": 1 << 20}
"""Entries worked on at once: what a CPU's cache holds (a whole table costs four times as much there)."""
MOST_ELEMENTS = 1 << 26
"""The same anywhere else: bounds the memory that is needed beside the table."""


def pieces(table: Tensor | Rows, rows: int | None = None) -> Iterator[slice]:
    """Slices of a few rows of `table` [rows, V], or of so many `rows` like its own; at least one row each."""
    each = max(1, ELEMENTS.get(table.device.type, MOST_ELEMENTS) // table.shape[1])
    for start in range(0, table.shape[0] if rows is None else rows, each):
        yield slice(start, start + each)


def softmax_pieces(logits: Tensor | Rows, picked: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """A few rows of `logits` [rows, V] after the other, and their softmax in float32: good until the next ones.

    Of the rows `picked` [n] alone, if given: the slices are of it then.
    """
    buffer: Tensor | None = None
    for part in pieces(logits, None if picked is None else len(picked)):
        rows = logits[part if picked is None else picked[part]]
        if buffer is None:
            buffer = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        yield part, torch.softmax(rows, -1, dtype=torch.float32, out=buffer[: len(rows)])
