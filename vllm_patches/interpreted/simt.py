"""Executes Triton kernels on CPU tensors, all programs of a launch in lockstep on numpy arrays.

Triton's own interpreter runs one program at a time, about 20 ms each: too slow to sample a law. Here the
source of a `@triton.jit` function is walked once per launch, statement by statement, and every value holds one
row per program ("lane"): a branch runs under the mask of the lanes that take it, as on a GPU warp. Programs of
the supported kernels never read what another program of the launch wrote, so lockstep changes nothing. The
tests, and every run where Triton is installed, compare the results with Triton's interpreter, token by token.

`triton` and `tl` below are stand-ins for the two modules of that name, with what vLLM's sampling kernels use.
"""

from __future__ import annotations

import ast
import ctypes
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Unsupported(Exception):
    """The kernel uses something of Triton's language that this executor does not know."""


# --- values -------------------------------------------------------------------------------------------------


class DType:
    """A Triton data type: `tl.float32` and its kin."""

    def __init__(self, kind: type) -> None:
        self.numpy = np.dtype(kind)
        self.primitive_bitwidth = self.numpy.itemsize * 8


BFLOAT16 = DType(np.float32)
"""numpy has none: in memory these are the upper halves of float32, as values they are float32 that fit one."""
BFLOAT16.primitive_bitwidth = 16


def upper_half(values: Array) -> Array:
    """The uint16 of bfloat16 that is nearest, of two the even one; NaN stays NaN."""
    bits = values.astype(np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)


def widened(halves: Array) -> Array:
    """The float32 of bfloat16."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


class Value:
    """A Triton scalar or block in every lane: shape [lanes or 1, 1 or block size], or a block of two dimensions."""

    __array_ufunc__ = None  # numpy scalars leave the operators to us

    def __init__(self, data: Array) -> None:
        self.data = data

    @property
    def dtype(self) -> DType:
        return DType(self.data.dtype.type)

    def __neg__(self) -> Value:
        return Value(-self.data)

    def __invert__(self) -> Value:
        return Value(~self.data)

    def __getitem__(self, index: Any) -> Value:
        """`block[:, None]` and `block[None, :]`: as the column and the row of a block of two dimensions."""
        if index == (slice(None), None):
            return Value(self.data[:, :, None])
        if index == (None, slice(None)):
            return Value(self.data[:, None, :])
        raise Unsupported(f"block[{index}]")

    def reshape(self, size: int) -> Value:
        """A block of one dimension again."""
        return Value(self.data.reshape(len(self.data), size))

    def to(self, dtype: DType, bitcast: bool = False) -> Value:
        if bitcast:
            return Value(self.data.view(dtype.numpy))
        if dtype is BFLOAT16:
            return Value(widened(upper_half(self.data)))
        with np.errstate(invalid="ignore", over="ignore"):
            return Value(self.data.astype(dtype.numpy))


class Pointer:
    """The memory of a tensor, and an element offset in every lane; `halves`: it holds bfloat16."""

    def __init__(self, memory: Array, offset: Any, halves: bool = False) -> None:
        self.memory, self.offset, self.halves = memory, offset, halves

    @property
    def dtype(self) -> Any:
        return SimpleNamespace(element_ty=BFLOAT16 if self.halves else DType(self.memory.dtype.type))

    def __add__(self, step: Any) -> Pointer:
        return self.at(self.offset + step)

    def __sub__(self, step: Any) -> Pointer:
        return self.at(self.offset - step)

    def at(self, offset: Any) -> Pointer:
        """The same memory, elsewhere."""
        return Pointer(self.memory, offset, self.halves)

    def same_memory(self, other: Pointer) -> bool:
        """Whether both point into one tensor."""
        kinds = {(pointer.memory.ctypes.data, pointer.memory.dtype, pointer.halves) for pointer in (self, other)}
        return len(kinds) == 1

    def read(self, offset: Array) -> Array:
        """The elements there."""
        found = self.memory[offset]
        return widened(found) if self.halves else found

    def write(self, offset: Array, values: Array) -> None:
        """Put the elements there."""
        self.memory[offset] = upper_half(values) if self.halves else values.astype(self.memory.dtype)


def pointer(tensor: Any) -> Pointer:
    """A pointer to the first element of a torch CPU tensor, whose memory ends with its last one."""
    import torch

    memory = torch.as_strided(tensor, (span(tensor),), (1,))
    halves = tensor.dtype == torch.bfloat16
    return Pointer((memory.view(torch.uint16) if halves else memory).numpy(), 0, halves)


def span(tensor: Any) -> int:
    """Elements from a tensor's first to its last, whatever of others lies between."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return last + 1 if tensor.numel() else 0


class PointerType:
    """`tl.pointer_type(dtype)`."""

    def __init__(self, element: DType) -> None:
        self.element = element


ENDS: dict[int, int] = {}
"""Addresses that tensors have told of themselves, and where their memory ends: see `know_addresses`."""


def know_addresses() -> None:
    """From now on know every tensor of this process that is asked for its address, so that a kernel that reads the
    address from a table (`Address`) cannot leave that tensor unseen."""
    import torch

    tell = torch.Tensor.data_ptr
    if hasattr(tell, "__wrapped__"):
        return

    @wraps(tell)
    def data_ptr(self: Any) -> int:
        address, storage = tell(self), self.untyped_storage()
        ENDS[address] = storage.data_ptr() + storage.nbytes()
        return address

    torch.Tensor.data_ptr = data_ptr


class Address:
    """A pointer that was read from memory: its base differs from lane to lane.

    `base`: addresses [lanes, 1] of elements of type `element`; `offset` counts elements.
    """

    def __init__(self, base: Array, element: DType, offset: Any = 0) -> None:
        self.base, self.element, self.offset = base, element, offset

    def __add__(self, step: Any) -> Address:
        return Address(self.base, self.element, self.offset + step)

    def __sub__(self, step: Any) -> Address:
        return Address(self.base, self.element, self.offset - step)

    def memory(self, live: Array, offset: Array) -> Iterator[tuple[Array, Array]]:
        """For each base, which of the `live` places lie in its tensor, and the tensor's memory from the base on.

        Those that lie elsewhere are counted, as are all of a base that no tensor has told.
        """
        for base in np.unique(self.base):
            size = (ENDS.get(int(base), int(base)) - int(base)) // self.element.numpy.itemsize
            mine = live & (self.base == base)
            here = mine & (offset >= 0) & (offset < size)
            machine.strays += int((mine & ~here).sum())
            if here.any():
                raw: Any = (ctypes.c_char * (size * self.element.numpy.itemsize)).from_address(int(base))
                yield here, np.frombuffer(raw, self.element.numpy)


def operands(*items: Any) -> list[Any]:
    """Raw operands, promoted as Triton does: Python numbers take the other side's type."""
    raw = [item.data if isinstance(item, Value) else item for item in items]
    kinds = [r.dtype for r in raw if isinstance(r, np.ndarray) and r.dtype != np.bool_]
    if not kinds:  # booleans and Python numbers only
        return [r.astype(np.int32) if isinstance(r, np.ndarray) else r for r in raw]
    if any(k.kind == "f" for k in kinds):
        kind = max((k for k in kinds if k.kind == "f"), key=lambda k: k.itemsize)
    else:  # the wider type; at equal width unsigned wins
        kind = max(kinds, key=lambda k: (k.itemsize, k.kind == "u"))
    if kind.kind != "f" and any(isinstance(r, float) for r in raw):
        kind = np.dtype(np.float32)
    return [r.astype(kind, copy=False) if isinstance(r, np.ndarray) else kind.type(r) for r in raw]


def _arithmetic(operation: Callable[[Any, Any], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(self: Value, other: Any) -> Any:
        if isinstance(other, Pointer):
            return NotImplemented
        with np.errstate(all="ignore"):
            return Value(np.asarray(operation(*operands(self, other))))

    def reflected(self: Value, other: Any) -> Any:
        with np.errstate(all="ignore"):
            return Value(np.asarray(operation(*operands(other, self))))

    return forward, reflected


def _bitwise(operation: Callable[[Any, Any], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    arithmetic, reflected_arithmetic = _arithmetic(operation)

    def logical(self: Value, other: Any) -> bool:
        return self.data.dtype == np.bool_ and (isinstance(other, bool) or _is_bool(other))

    def forward(self: Value, other: Any) -> Any:
        return Value(operation(self.data, truth(other))) if logical(self, other) else arithmetic(self, other)

    def reflected(self: Value, other: Any) -> Any:
        return Value(operation(truth(other), self.data)) if logical(self, other) else reflected_arithmetic(self, other)

    return forward, reflected


def _is_bool(item: Any) -> bool:
    return isinstance(item, Value) and item.data.dtype == np.bool_


def _divide(a: Any, b: Any) -> Any:
    if np.asarray(a).dtype.kind != "f":
        a, b = np.float32(a), np.float32(b)
    return a / b


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": _divide,
    "mod": np.fmod,  # with the sign of the dividend, as in C
    "floordiv": lambda a, b: (a - np.fmod(a, b)) // b,
    "lshift": np.left_shift,
    "rshift": np.right_shift,
}
for _name, _operation in ARITHMETIC.items():
    _forward, _reflected = _arithmetic(_operation)
    setattr(Value, f"__{_name}__", _forward)
    setattr(Value, f"__r{_name}__", _reflected)
for _name, _operation in {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}.items():
    _forward, _reflected = _bitwise(_operation)
    setattr(Value, f"__{_name}__", _forward)
    setattr(Value, f"__r{_name}__", _reflected)
for _name, _operation in {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}.items():
    setattr(Value, f"__{_name}__", _arithmetic(_operation)[0])
Value.__hash__ = None  # type: ignore[assignment]


def truth(item: Any) -> Any:
    """As booleans: an array per lane, or a Python bool."""
    return item.data.astype(np.bool_, copy=False) if isinstance(item, Value) else bool(item)


def select(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds in the lane, else `no`."""
    if not isinstance(condition, np.ndarray):
        return yes if condition else no
    if yes is no:
        return yes
    if isinstance(yes, tuple):
        return tuple(select(condition, y, n) for y, n in zip(yes, no, strict=True))
    if isinstance(yes, Pointer) and isinstance(no, Pointer) and yes.same_memory(no):
        return yes.at(select(condition, yes.offset, no.offset))
    if isinstance(yes, Address) and isinstance(no, Value):
        return yes  # the number that it was made of: the other lanes have no pointer to use
    if not all(isinstance(item, Value | int | float) for item in (yes, no)):
        raise Unsupported(f"a branch that assigns {type(yes).__name__} in some programs only")
    yes_or_no = _is_bool_like(yes) and _is_bool_like(no)
    a, b = (truth(yes), truth(no)) if yes_or_no else operands(yes, no)
    if not yes_or_no and not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray):  # two Python numbers
        kind = np.float32 if isinstance(a, float) or isinstance(b, float) else np.int32
        a, b = kind(a), kind(b)
    more = max(np.ndim(a), np.ndim(b)) - condition.ndim  # a block of two dimensions, a condition of one
    return Value(np.where(condition.reshape(*condition.shape, *(1,) * more), a, b))


def dimensions(item: Any) -> int:
    """2 for a block of two dimensions, else 1."""
    return item.data.ndim - 1 if isinstance(item, Value) else 1


def _is_bool_like(item: Any) -> bool:
    return isinstance(item, bool) or _is_bool(item)


# --- the launch in progress ---------------------------------------------------------------------------------


class Machine:
    """State of the launch in progress: program ids, active lanes and accesses outside a tensor."""

    def __init__(self) -> None:
        self.program_ids: list[Array] = []
        self.grid: tuple[int, ...] = ()
        self.active: Array | None = None
        """Lanes that execute the current statement, [lanes, 1]; None means all."""
        self.strays = 0
        """Loads and stores outside their tensor so far, over all launches: reads gave 0, writes were dropped."""
        self.written: list[tuple[Array, Array, Array]] = []
        """Of each store of the launch, in turn: memory, places, and what was there."""

    @contextmanager
    def only(self, condition: Any) -> Iterator[bool]:
        """Execute under an additional mask; yields whether any lane is left."""
        before = self.active
        if isinstance(condition, np.ndarray):
            self.active = condition if before is None else before & condition
        try:
            yield bool(np.any(condition)) and (self.active is None or bool(self.active.any()))
        finally:
            self.active = before

    def keep(self, memory: Array, offset: Array) -> None:
        """These places are about to be written."""
        self.written.append((memory, offset, memory[offset]))

    def take_back(self) -> None:
        """Put all that the launch has written back as it was."""
        while self.written:
            memory, offset, before = self.written.pop()
            memory[offset] = before

    def narrow(self, *masks: Any) -> Any:
        """Active lanes and all the given masks."""
        live: Any = True if self.active is None else self.active
        for mask in masks:
            live = live & truth(mask)
        return live


machine = Machine()


def load(address: Pointer | Address, mask: Any = True, other: Any = None, **hints: Any) -> Value:
    """`tl.load`: 0 where nothing is read and `other` is not given. `hints` concern caches only."""
    offset = offsets(address)
    live = machine.narrow(mask)
    if isinstance(address, Address):
        offset, live, _ = np.broadcast_arrays(offset, live, address.base)
        return _load_at(address, offset, live, other)
    inside = (offset >= 0) & (offset < address.memory.size)
    machine.strays += int((live & ~inside).sum())
    taken = live & inside
    found = address.read(np.where(taken, offset, 0))
    if np.all(taken):
        return Value(found)
    return Value(np.where(taken, found, found.dtype.type(0 if other is None else other)))


def store(address: Pointer | Address, value: Any, mask: Any = True, **hints: Any) -> None:
    """`tl.store`."""
    offset = offsets(address)
    raw = value.data if isinstance(value, Value) else np.asarray(value)
    live = np.asarray(machine.narrow(mask))
    if isinstance(address, Address):
        offset, raw, live, _ = np.broadcast_arrays(offset, raw, live, address.base)
        for here, memory in address.memory(live, offset):
            machine.keep(memory, offset[here])
            memory[offset[here]] = raw[here].astype(memory.dtype)
        return
    offset, raw, live = np.broadcast_arrays(offset, raw, live)
    inside = (offset >= 0) & (offset < address.memory.size)
    machine.strays += int((live & ~inside).sum())
    taken = live & inside
    places = offset[taken]
    machine.keep(address.memory, places)
    address.write(places, raw[taken])


def _atomic(operation: Any) -> Callable[..., None]:
    """`tl.atomic_or` and its kin, for kernels that do not use the value that was there before."""

    def apply(address: Pointer, value: Any, mask: Any = True) -> None:
        if address.halves:
            raise Unsupported("an atomic operation on bfloat16")
        raw = value.data if isinstance(value, Value) else np.asarray(value)
        offset, raw, live = np.broadcast_arrays(offsets(address), raw, np.asarray(machine.narrow(mask)))
        inside = (offset >= 0) & (offset < address.memory.size)
        machine.strays += int((live & ~inside).sum())
        taken = live & inside
        machine.keep(address.memory, offset[taken])
        operation.at(address.memory, offset[taken], raw[taken].astype(address.memory.dtype))

    return apply


def offsets(address: Pointer | Address) -> Array:
    """Element offsets in every lane."""
    return address.offset.data if isinstance(address.offset, Value) else np.full((1, 1), address.offset)


def _load_at(address: Address, offset: Array, live: Array, other: Any) -> Value:
    read = np.full(offset.shape, 0 if other is None else other, address.element.numpy)
    for here, memory in address.memory(live, offset):
        read[here] = memory[offset[here]]
    return Value(read)


# --- triton.language ----------------------------------------------------------------------------------------


def _function(operation: Callable[[Array], Array]) -> Callable[[Any], Value]:
    def apply(x: Any) -> Value:
        raw = x.data if isinstance(x, Value) else np.full((1, 1), x)
        raw = raw if raw.dtype.kind == "f" else raw.astype(np.float32)
        with np.errstate(all="ignore"):
            return Value(operation(raw))

    return apply


def _pairwise(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Value]:
    return lambda a, b: Value(np.asarray(operation(*operands(a, b))))


def _maximum(x: Value, axis: int = 0, return_indices: bool = False) -> Any:
    index = x.data.argmax(axis=1, keepdims=True)
    top = Value(np.take_along_axis(x.data, index, axis=1))
    return (top, Value(index.astype(np.int32))) if return_indices else top


def _cast(x: Any, dtype: Any) -> Any:
    """`tl.cast`: to another type, or a number to the pointer that it is."""
    if isinstance(dtype, PointerType):
        if dtype.element is BFLOAT16:
            raise Unsupported("an address of bfloat16")
        return Address(x.data.astype(np.uint64), dtype.element)
    return _filled(x, dtype)


def _same(x: Any, *hint: Any) -> Any:
    """A hint to the compiler about x."""
    return x


def _filled(value: Any, dtype: DType) -> Value:
    raw = value.data if isinstance(value, Value) else np.full((1, 1), value)
    return Value(raw.astype(dtype.numpy))


def _philox(seed: Any, offset: Any) -> list[Array]:
    """Philox-4x32-10 (Salmon et al. 2011), counter and key laid out as in triton.language.random."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    key, counter = (_filled(x, tl.uint64).data for x in (seed, offset))
    k0, k1 = key & low, key >> high
    wide = offset.data.dtype.itemsize > 4 if isinstance(offset, Value) else False
    c0, c1 = counter & low, (counter >> high if wide else counter * np.uint64(0))
    c2 = c3 = c0 * np.uint64(0)
    for _ in range(10):
        b, a = np.uint64(0xCD9E8D57) * c2, np.uint64(0xD2511F53) * c0
        c0, c1, c2, c3 = (b >> high) ^ c1 ^ k0, b & low, (a >> high) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return [c.astype(np.uint32) for c in (c0, c1, c2, c3)]


def _rand(seed: Any, offset: Any) -> Value:
    word = _philox(seed, offset)[0].view(np.int32)
    return Value(np.where(word < 0, -word - 1, word).astype(np.float32) * np.float32(4.6566127342e-10))


def _program_id(axis: int) -> Value:
    return Value(machine.program_ids[axis])


class Constexpr:
    """`tl.constexpr(x)` is x itself."""

    def __new__(cls, value: Any) -> Any:
        return value


class Language(SimpleNamespace):
    """A module of Triton's of which only some names exist."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Unsupported(f"tl.{name}")


def _cdiv(a: Any, b: Any) -> Any:
    return (a + b - 1) // b


tl = Language(
    **{name: DType(getattr(np, name)) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")},
    uint64=DType(np.uint64),
    float16=DType(np.float16),
    bfloat16=BFLOAT16,
    float32=DType(np.float32),
    float64=DType(np.float64),
    int1=DType(np.bool_),
    constexpr=Constexpr,
    program_id=_program_id,
    num_programs=lambda axis: machine.grid[axis],
    load=load,
    store=store,
    atomic_add=_atomic(np.add),
    atomic_or=_atomic(np.bitwise_or),
    cdiv=_cdiv,
    arange=lambda low, high: Value(np.arange(low, high, dtype=np.int32)[None, :]),
    zeros=lambda shape, dtype: _filled(0, dtype),
    zeros_like=lambda x: Value(np.zeros_like(x.data)),
    full=lambda shape, value, dtype: _filled(value, dtype),
    cast=_cast,
    pointer_type=PointerType,
    multiple_of=_same,
    max_contiguous=_same,
    debug_barrier=lambda: None,
    range=range,  # its name is looked at, and its arguments
    static_range=range,
    where=lambda condition, yes, no: select(np.asarray(truth(condition)), yes, no),
    maximum=_pairwise(np.maximum),
    minimum=_pairwise(np.minimum),
    abs=_function(np.abs),
    exp=_function(np.exp),
    exp2=_function(np.exp2),
    log2=_function(np.log2),
    sqrt=_function(np.sqrt),
    floor=_function(np.floor),
    log=_function(np.log),
    max=_maximum,
    min=lambda x, axis=0: Value(x.data.min(axis=1, keepdims=True)),
    argmax=lambda x, axis=0: _maximum(x, axis, True)[1],
    sum=lambda x, axis=0: Value(x.data.sum(axis=1, keepdims=True, dtype=x.data.dtype)),
    rand=_rand,
    randint=lambda seed, offset: Value(_philox(seed, offset)[0]),
    randint4x=lambda seed, offset: tuple(map(Value, _philox(seed, offset))),
    div_rn=lambda a, b: a / b,
)
tldevice = Language(log1p=_function(np.log1p))


# --- functions and launches ---------------------------------------------------------------------------------


class Lazy(ast.NodeTransformer):
    """Turns `and`, `or`, `not` and `a if c else b` into calls that respect lanes."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        name = "_and" if isinstance(node.op, ast.And) else "_or"
        result: ast.expr = node.values[0]
        for operand in node.values[1:]:
            result = _call(name, result, _thunk(operand))
        return result

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return _call("_not", node.operand) if isinstance(node.op, ast.Not) else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return _call("_choose", node.test, _thunk(node.body), _thunk(node.orelse))


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _thunk(body: ast.expr) -> ast.Lambda:
    return ast.Lambda(ast.arguments([], [], None, [], [], None, []), body)


def _and(left: Any, right: Callable[[], Any]) -> Any:
    if not isinstance(left, Value):
        return left and right()
    with machine.only(truth(left)):
        return Value(truth(left) & truth(right()))


def _or(left: Any, right: Callable[[], Any]) -> Any:
    if not isinstance(left, Value):
        return left or right()
    with machine.only(~truth(left)):
        return Value(truth(left) | truth(right()))


def _not(item: Any) -> Any:
    return Value(~truth(item)) if isinstance(item, Value) else not item


def _choose(condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    if not isinstance(condition, Value):
        return yes() if condition else no()
    mask = truth(condition)
    with machine.only(mask):
        first = yes()
    with machine.only(~mask):
        return select(mask, first, no())


BUILTINS = {"_and": _and, "_or": _or, "_not": _not, "_choose": _choose}


def parse(source: str) -> list[ast.stmt]:
    """The statements of a kernel, from the text of its definition."""
    tree = ast.parse(textwrap.dedent(source))
    body: list[ast.stmt] = ast.fix_missing_locations(Lazy().visit(tree)).body[0].body
    return body


class Kernel:
    """A `@triton.jit` function: callable from other kernels, launched as `kernel[grid](...)`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.signature = inspect.signature(function)
        self.arg_names = list(self.signature.parameters)
        self.__name__ = function.__name__
        self._body: list[ast.stmt] | None = None

    @property
    def body(self) -> list[ast.stmt]:
        if self._body is None:
            self._body = parse(inspect.getsource(self.function))
        return self._body

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return Frame({**self.names(), **BUILTINS, **bound.arguments}).run(self.body)

    def names(self) -> dict[str, Any]:
        """What the names that are not the kernel's own stand for."""
        return self.function.__globals__

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            kwargs = {name: value for name, value in kwargs.items() if name in self.arg_names}
            shape = grid(kwargs) if callable(grid) else grid
            machine.grid = (*shape, *(1,) * (3 - len(shape)))
            machine.written = []
            ids = np.indices(machine.grid).reshape(3, -1, 1).astype(np.int32)
            machine.program_ids = list(ids)
            if ids.shape[1]:
                self(*map(argument, args), **{name: argument(value) for name, value in kwargs.items()})

        return launch


def argument(item: Any) -> Any:
    """A kernel argument: tensors become pointers."""
    return pointer(item) if hasattr(item, "untyped_storage") else item


class Frame:
    """One call of a kernel function: its names, and the lanes that have returned."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names
        self.entered = machine.active
        """The lanes of the call: no other one sees its names."""
        self.returned: Any = False
        self.result: Any = None

    def run(self, body: list[ast.stmt]) -> Any:
        self.block(body)
        return self.result

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            with machine.only(
                ~self.returned if isinstance(self.returned, np.ndarray) else not self.returned
            ) as any_lane:
                if not any_lane:
                    return
                self.execute(statement)

    def execute(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Assign(targets=[target], value=value):
                self.assign(target, self.evaluate(value))
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self.assign(target, self.evaluate(value))
            case ast.AugAssign(target=ast.Name() as target, op=op, value=value):
                name = ast.Name(target.id, ast.Load())
                self.assign(target, self.evaluate(ast.fix_missing_locations(ast.BinOp(name, op, value))))
            case ast.Expr(value=value):
                if not isinstance(value, ast.Constant):
                    self.evaluate(value)
            case ast.If(test=test, body=body, orelse=orelse):
                self.branch(self.evaluate(test), body, orelse)
            case (
                ast.For(target=target, iter=ast.Call(func=ast.Name(id="range"), args=bounds), body=body)
                | ast.For(
                    target=target,
                    iter=ast.Call(func=ast.Attribute(attr="range" | "static_range"), args=bounds),
                    body=body,
                )
            ):
                self.loop(target, [self.evaluate(bound) for bound in bounds], body)
            case ast.Return(value=value):
                self.leave(self.evaluate(value) if value is not None else None)
            case ast.Pass():
                pass
            case _:
                raise Unsupported(f"statement {type(statement).__name__}")

    def evaluate(self, node: ast.expr) -> Any:
        code = getattr(node, "_code", None)
        if code is None:
            code = compile(ast.Expression(node), "<kernel>", "eval")
            node._code = code  # type: ignore[attr-defined]
        return eval(code, self.names)

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Tuple):
            for part, item in zip(target.elts, value, strict=True):
                self.assign(part, item)
            return
        if not isinstance(target, ast.Name):
            raise Unsupported(f"assignment to {type(target).__name__}")
        before = self.names.get(target.id)
        # Programs that do not come here keep theirs, unless it is another kind of block, which is not used any more.
        partly = machine.active is not self.entered and machine.active is not None
        if partly and target.id in self.names and dimensions(before) == dimensions(value):
            value = select(machine.active, value, before)
        self.names[target.id] = value

    def branch(self, condition: Any, body: list[ast.stmt], orelse: list[ast.stmt]) -> None:
        if not isinstance(condition, Value):
            self.block(body if condition else orelse)
            return
        mask = truth(condition)
        for lanes, statements in ((mask, body), (~mask, orelse)):
            with machine.only(lanes) as any_lane:
                if any_lane and statements:
                    self.block(statements)

    def loop(self, target: ast.expr, bounds: list[Any], body: list[ast.stmt]) -> None:
        start, stop, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds[:2], *bounds[2:], 1)[:3]
        index = start
        while True:
            with machine.only(truth(stop > index)) as any_lane:
                if not any_lane:
                    return
                item = index.data.copy() if isinstance(index, Value) else np.full((1, 1), index, np.int32)
                self.assign(target, Value(item))
                self.block(body)
            index = index + step

    def leave(self, value: Any) -> None:
        if machine.active is None:
            self.returned, self.result = True, value
            return
        first = self.returned is False
        self.result = value if first else select(machine.active, value, self.result)
        self.returned = machine.active if first else self.returned | machine.active


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`@triton.jit`, with or without options (which concern compilation only)."""
    return Kernel(function) if function is not None else jit


triton = Language(
    jit=jit,
    cdiv=_cdiv,
    next_power_of_2=lambda n: 1 << (n - 1).bit_length(),
    heuristics=lambda values: lambda kernel: kernel,
    autotune=lambda *args, **kwargs: lambda kernel: kernel,
)
