"""Read a GGUF file: its metadata, and its tensors as float32. numpy alone.

The format is described in the ggml repository (gguf.md). Of the many block formats, those that a Q4_1 file
of a small model holds.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speceval.errors import UserError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Kind of a metadata value -> its struct format."""
_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class Block:
    """How a tensor's values are stored: `bytes` bytes hold `values` of them."""

    values: int
    bytes: int
    unpack: Callable[[Bytes], Floats]
    """[blocks, bytes] -> [blocks, values]"""


def _half(raw: Bytes) -> Floats:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _single(raw: Bytes) -> Floats:
    return np.array(raw).view(np.float32)


def _q4_1(raw: Bytes) -> Floats:
    """Scale, minimum (float16 each), 16 bytes: the low halves are values 0-15, the high halves 16-31."""
    levels = np.hstack((raw[:, 4:] & 0x0F, raw[:, 4:] >> 4)).astype(np.float32)
    return _half(raw[:, :2]) * levels + _half(raw[:, 2:4])


def _q8_0(raw: Bytes) -> Floats:
    """Scale (float16), 32 signed bytes."""
    return _half(raw[:, :2]) * np.ascontiguousarray(raw[:, 2:]).view(np.int8).astype(np.float32)


BLOCKS = {0: Block(1, 4, _single), 1: Block(1, 2, _half), 3: Block(32, 20, _q4_1), 8: Block(32, 34, _q8_0)}
"""ggml's number of a storage format -> how to read it."""


class Gguf:
    """An open file: `metadata` by key; `names` of its tensors; `tensor` reads one."""

    def __init__(self, path: Path) -> None:
        """Reads the head. Raises UserError if `path` is no GGUF file of version 2 or 3."""
        self._path = path
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        magic, version, tensors, keys = self._numbers("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise UserError(f"{path}: not a GGUF file of version 2 or 3")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text()
            self.metadata[key] = self._value(*self._numbers("I"))
        places = dict(self._place() for _ in range(tensors))
        alignment = self.metadata.get("general.alignment", 32)
        self._start = math.ceil(self._at / alignment) * alignment
        self._places = places

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the file's order."""
        return list(self._places)

    def tensor(self, name: str) -> Floats:
        """Values of a tensor; GGUF counts its axes from the fastest, this shape from the slowest, as torch's does."""
        shape, kind, offset = self._places[name]
        if kind not in BLOCKS:
            raise UserError(f"{self._path}: tensor {name} is stored in format {kind}, which is not read here")
        block = BLOCKS[kind]
        rows = math.prod(shape) // block.values
        raw = np.frombuffer(self._data, np.uint8, rows * block.bytes, self._start + offset)
        return block.unpack(raw.reshape(rows, block.bytes)).reshape(shape)

    def _place(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        """Name; shape, storage format and where the values begin."""
        name = self._text()
        (axes,) = self._numbers("I")
        sizes = self._numbers(f"{axes}Q")
        kind, offset = self._numbers("IQ")
        return name, (sizes[::-1], kind, offset)

    def _numbers(self, form: str) -> tuple[Any, ...]:
        form = f"<{form}"
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _text(self) -> str:
        (size,) = self._numbers("Q")
        self._at += size
        return self._data[self._at - size : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _LIST:
            item, count = self._numbers("IQ")
            return [self._value(item) for _ in range(count)]
        return self._numbers(_NUMBERS[kind])[0]
