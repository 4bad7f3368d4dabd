"""What the lockstep executor makes of the V2 runner's kernels: pointers in tables, loops by lane, strays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from vllm_patches.interpreted import simt
from vllm_patches.interpreted.simt import tl


@pytest.fixture(autouse=True)
def strays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = simt.machine.strays
    monkeypatch.setattr(torch.Tensor, "data_ptr", torch.Tensor.data_ptr)
    simt.know_addresses()
    yield
    simt.machine.strays = before


@simt.jit
def gather(table: Any, out: Any, width: Any) -> None:
    """Each program reads one tensor, through an address in a table, and doubles its last element in place."""
    row = tl.program_id(0)
    pointer = tl.multiple_of(tl.cast(tl.load(table + row), tl.pointer_type(tl.int32)), 16)
    tl.store(out + row, tl.load(pointer + width - 1))
    tl.store(pointer + width - 1, tl.load(pointer + width - 1) * 2)


@simt.jit
def fill(starts: Any, ends: Any, out: Any) -> None:
    """Each program writes its number between its own bounds, two elements at a time."""
    row = tl.program_id(0)
    end = tl.load(ends + row)
    for i in tl.range(tl.load(starts + row), end, 2):
        offset = i + tl.arange(0, 2)
        tl.store(out + offset, row + 1, mask=offset < end)


@simt.jit
def either(a: Any, out: Any, shift: Any) -> None:
    """Odd programs read `shift` elements further on."""
    row = tl.program_id(0)
    place = a + row
    if row % 2 == 1:
        place = a + row + shift
    tl.store(out + row, tl.load(place))


@simt.jit
def bits(words: Any, out: Any, WORDS: Any) -> None:
    """Each program unpacks its own words, lowest bit first."""
    row = tl.program_id(0)
    packed = tl.load(words + row * WORDS + tl.arange(0, WORDS))
    each = ((packed[:, None] >> tl.arange(0, 4)[None, :]) & 1).reshape(WORDS * 4)
    tl.store(out + row * WORDS * 4 + tl.arange(0, WORDS * 4), each)


@simt.jit
def odd_bits(words: Any, out: Any) -> None:
    """Odd programs unpack their words, in two steps."""
    row = tl.program_id(0)
    if row % 2 == 1:
        packed = tl.load(words + row + tl.arange(0, 1))
        each = (packed[:, None] >> tl.arange(0, 4)[None, :]) & 1
        each = each.to(tl.int1)
        each = each.reshape(4)
        tl.store(out + row * 4 + tl.arange(0, 4), each)


@simt.jit
def halved(x: Any) -> Any:
    """A number of 32 bits without sign, whatever came in."""
    x = x.to(tl.uint32)
    return x >> 1


@simt.jit
def odd_halved(numbers: Any, out: Any) -> None:
    """Odd programs halve their number by a function that narrows its argument."""
    row = tl.program_id(0)
    number = tl.load(numbers + row)
    half = number
    if row % 2 == 1:
        half = halved(number).to(tl.int64)
    tl.store(out + row, half)


@simt.jit
def scaled(x: Any, out: Any, by: Any, size: Any) -> None:
    """Each element times a number, rounded as the memory is."""
    place = tl.arange(0, 8)
    value = tl.load(x + place, mask=place < size, other=1.0).to(tl.float32) * by
    tl.store(out + place, value.to(out.dtype.element_ty), mask=place < size)


@simt.jit
def tally(tokens: Any, counts: Any, words: Any, size: Any, WIDTH: Any) -> None:
    """Programs count their tokens and mark them in words of 32 bits, which they share."""
    place = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    mask = place < size
    token = tl.load(tokens + place, mask=mask)
    tl.atomic_add(counts + token, 1, mask=mask)
    tl.atomic_or(words + token // 32, tl.full((WIDTH,), 1, tl.int32) << token % 32, mask=mask)


def addresses(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors])


def test_a_number_that_was_read_can_be_a_pointer_of_its_own_in_each_program() -> None:
    first, second = torch.arange(4, dtype=torch.int32), torch.arange(10, 14, dtype=torch.int32)
    out = torch.zeros(2, dtype=torch.int32)
    gather[(2,)](addresses(first, second), out, 4)
    assert out.tolist() == [3, 13]
    assert (first.tolist(), second.tolist()) == ([0, 1, 2, 6], [10, 11, 12, 26])


def test_a_loop_may_begin_and_end_elsewhere_in_each_program() -> None:
    out = torch.zeros(9, dtype=torch.int32)
    fill[(3,)](torch.tensor([0, 3, 7]), torch.tensor([3, 3, 8]), out)
    assert out.tolist() == [1, 1, 1, 0, 0, 0, 0, 3, 0]


def test_a_block_may_have_two_dimensions_for_a_while() -> None:
    out = torch.zeros(16, dtype=torch.int32)
    bits[(2,)](torch.tensor([0b0001, 0b0110, 0b1111, 0b1000]), out, 2)
    assert out.tolist() == [1, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1]


def test_a_block_of_two_dimensions_may_change_in_some_programs_only() -> None:
    out = torch.zeros(12, dtype=torch.int32)
    odd_bits[(3,)](torch.tensor([15, 6, 15]), out)
    assert out.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_memory_of_any_precision_is_read_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -3.1416, 1e-3, 65000.0, 1.00390625, 1.01171875, torch.inf]).to(dtype)
    out = torch.zeros(7).to(dtype)
    scaled[(1,)](x, out, 1.7, 7)
    expected = (x.float() * np.float32(1.7)).to(dtype)
    assert torch.equal(out, expected)
    halves = torch.tensor([1.00390625, 1.01171875, torch.nan])  # each between two of bfloat16
    scaled[(1,)](halves, out := torch.zeros(3).to(dtype), 1, 3)
    assert torch.equal(out.nan_to_num(7), halves.to(dtype).nan_to_num(7))


def test_a_function_called_in_some_programs_only_may_give_its_arguments_another_type() -> None:
    numbers = torch.tensor([-2, -2, 6, 2**32 + 6])
    out = torch.zeros(4, dtype=torch.int64)
    odd_halved[(4,)](numbers, out)
    assert out.tolist() == [-2, (2**32 - 2) // 2, 6, 3]


def test_a_pointer_may_be_moved_in_some_programs_only() -> None:
    out = torch.zeros(4)
    either[(4,)](torch.arange(8).float(), out, 4)
    assert out.tolist() == [0, 5, 2, 7]


def test_what_several_programs_add_to_one_place_is_all_there_and_strays_are_counted() -> None:
    counts, words, before = torch.zeros(34, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), simt.machine.strays
    tally[(2,)](torch.tensor([3, 3, 33, 3, 0]), counts, words, 5, 4)
    assert (counts[[0, 3, 33]].tolist(), int(counts.sum()), words.tolist()) == ([1, 3, 1], 5, [9, 2])
    assert simt.machine.strays == before
    tally[(1,)](torch.tensor([34, 64]), counts, words, 2, 2)
    assert simt.machine.strays - before == 3 and words.tolist() == [9, 6]


def test_accesses_outside_a_tensor_are_counted_and_touch_nothing() -> None:
    before, memory = simt.machine.strays, torch.zeros(8, dtype=torch.int32)
    fill[(1,)](torch.tensor([6]), torch.tensor([10]), memory)
    assert simt.machine.strays - before == 2 and memory.tolist() == [0] * 6 + [1, 1]
    out = torch.ones(2)
    either[(2,)](torch.arange(4).float(), out, 4)
    assert simt.machine.strays - before == 3 and out.tolist() == [0, 0]


def test_a_tensor_that_is_part_of_a_buffer_ends_where_it_ends() -> None:
    before, buffer = simt.machine.strays, torch.zeros(8, dtype=torch.int32)
    fill[(1,)](torch.tensor([-1]), torch.tensor([5]), buffer[2:6])
    assert simt.machine.strays - before == 2 and buffer.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    column = buffer.view(4, 2)[1:3, 1]  # its places are 3 and 5 of the buffer: reached by its stride
    fill[(1,)](torch.tensor([2]), torch.tensor([4]), column)
    assert simt.machine.strays - before == 3 and buffer.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    fill[(1,)](torch.tensor([0]), torch.tensor([1]), buffer[:0])
    assert simt.machine.strays - before == 4


@pytest.mark.parametrize("width", [0, 5, -3, 1 << 20], ids=["before", "behind", "far before", "far behind"])
def test_an_access_outside_a_tensor_whose_address_was_read_is_counted_too(width: int) -> None:
    before, memory = simt.machine.strays, torch.arange(4, dtype=torch.int32)
    gather[(1,)](addresses(memory), torch.zeros(1, dtype=torch.int32), width)
    assert simt.machine.strays - before == 3 and memory.tolist() == [0, 1, 2, 3]


def test_an_address_in_the_middle_of_a_tensor_reaches_to_its_end() -> None:
    before, memory = simt.machine.strays, torch.arange(8, dtype=torch.int32)
    out = torch.zeros(1, dtype=torch.int32)
    gather[(1,)](addresses(memory[3:]), out, 5)
    assert simt.machine.strays == before and out.tolist() == [7]
    gather[(1,)](addresses(memory[3:]), out, 6)
    assert simt.machine.strays - before == 3


def test_an_address_that_no_tensor_has_told_is_not_followed() -> None:
    before, out = simt.machine.strays, torch.ones(1, dtype=torch.int32)
    gather[(1,)](torch.tensor([8]), out, 1)
    assert simt.machine.strays - before == 3 and out.tolist() == [0]


def test_powers_logarithms_and_minima_are_numpys() -> None:
    x = simt.Value(np.array([[0.5, 2.0, 8.0]], np.float32))
    np.testing.assert_allclose(tl.exp2(x).data, [[2**0.5, 4, 256]], rtol=1e-6)
    assert tl.log2(x).data.tolist() == [[-1.0, 1.0, 3.0]]
    assert tl.min(x).data.tolist() == [[0.5]]
