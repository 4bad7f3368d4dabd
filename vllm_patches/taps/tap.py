"""The one wrapper of the verifier: listeners are told of each verify step, before and after the tokens are chosen.

V1's `rejection_sample` (vllm/v1/sample/rejection_sampler.py) and V2's (vllm/v1/worker/gpu/spec_decode/
rejection_sampler.py) are wrapped in a worker process while somebody listens; when nobody does they are vLLM's own
again. A step is made of the verifier's own arguments and draws no random number: the tokens stay what they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from vllm_patches.pieces import Rows

GREEDY_BELOW = 1e-5
"""Temperature below which vLLM takes the argmax (`_SAMPLING_EPS` in v1/sample/sampler.py)."""
MARK = "__tapped__"
"""Attribute of a wrapper that holds what it wraps."""
V1 = "vllm.v1.sample.rejection_sampler"
V2 = "vllm.v1.worker.gpu.spec_decode.rejection_sampler"
WRAPPED = ((V1, "rejection_sample"), (V2, "rejection_sample"), (V2, "RejectionSampler.__call__"))

Told = Callable[[Tensor], None]
"""Takes what a step emitted: int [B, K + 1], each request's tokens, then -1."""


@dataclass(frozen=True)
class Step:
    """What a verifier is given: B requests with R draft tokens together, rows in the order of the requests.

    Names, counts and whether all is greedy are known to the host; nothing else is read back from the device.
    """

    names: list[str]
    """vLLM's own names of the requests [B]."""
    counts: list[int]
    """Drafts of each request [B]."""
    drafts: Tensor
    """[R], -1: no draft."""
    logits: Tensor | Rows
    """The target's [R, V], after temperature, top-k and top-p. The verifier may overwrite them."""
    q: Tensor | Rows | None
    """What the drafts were drawn from [R, V]; None: they are certain."""
    greedy: Tensor | bool
    """Whether the row's request takes the argmax [R], or all do, or none."""


class Listener(Protocol):
    """Whoever wants to know of verify steps."""

    def hear(self, step: Step) -> Told | None:
        """Told before tokens are chosen; what it returns, if anything, is told which ones were."""

    def drain(self) -> dict[str, Any]:
        """All since the last call, as plain data (`recorder.Recorder.drain`)."""

    def close(self) -> None:
        """Undo whatever else was set up to listen."""


def put(values: Sequence[int], device: torch.device) -> Tensor:
    """Numbers that the host knows, on the device; nobody waits for them to get there."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def starts(counts: Sequence[int]) -> list[int]:
    """Of R = sum(counts) drafts, which are the first of their request."""
    ends = list(accumulate(counts, initial=0))
    return [start for start, count in zip(ends, counts, strict=False) if count]


class Tap:
    """Listeners of one worker's verifier, by name."""

    def __init__(self) -> None:
        self._runner: Any = None
        self._listeners: dict[str, Listener] = {}

    def add(self, name: str, start: Callable[[Any], Listener], runner: Any) -> None:
        """Tell the listener that `start` makes for a model runner, V1 or V2, of its verify steps.

        It replaces the one of the same name. Another runner is another engine: what listened before is closed.
        """
        if runner is not self._runner:
            self.clear()
        self.remove(name)
        self._listeners[name], self._runner = start(runner), runner
        unwrap()
        wrap(self, runner)

    def remove(self, name: str) -> None:
        """Close the listener, if there is one of that name; the last one takes the wrapper with it."""
        if name in self._listeners:
            self._listeners.pop(name).close()
        if not self._listeners:
            unwrap()

    def clear(self) -> None:
        """Remove all listeners."""
        for name in self.names():
            self.remove(name)
        unwrap()

    def names(self) -> list[str]:
        """Who listens."""
        return sorted(self._listeners)

    def drain(self, name: str) -> dict[str, Any]:
        """`Listener.drain` of one of `names`."""
        return self._listeners[name].drain()

    def verify(self, step: Step, verifier: Callable[[], Any], emitted: Callable[[Any], Tensor]) -> Any:
        """What `verifier` returns, of which `emitted` makes what the listeners are told."""
        told = [tell for listener in self._listeners.values() if (tell := listener.hear(step))]
        output = verifier()
        for tell in told:
            tell(emitted(output))
        return output


TAP = Tap()
"""A worker process has one verifier, and this is its tap."""


def tapped() -> bool:
    """Whether the live verifier of this process is wrapped."""
    return any(hasattr(_live(module, path)[2], MARK) for module, path in WRAPPED)


def unwrap() -> None:
    """Put this process's verifiers back as they were."""
    for module, path in WRAPPED:
        owner, name, live = _live(module, path)
        if hasattr(live, MARK):
            setattr(owner, name, getattr(live, MARK))


def wrap(tap: Tap, runner: Any) -> None:
    """Wrap the verifier of a model runner; none must be wrapped yet."""
    if runner.vllm_config.use_v2_model_runner:
        _wrap_v2(tap)
    else:
        _wrap_v1(tap, runner)


def _live(module: str, path: str) -> tuple[Any, str, Any]:
    """Owner, name and live value of a symbol; None for what is not imported."""
    owner: Any = sys.modules.get(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent, None)
    return owner, name, getattr(owner, name, None)


def _put(owner: Any, name: str, wrapper: Any) -> None:
    setattr(wrapper, MARK, getattr(owner, name))
    setattr(owner, name, wrapper)


def _wrap_v1(tap: Tap, runner: Any) -> None:
    from vllm.v1.sample import rejection_sampler

    verifier = rejection_sampler.rejection_sample

    @wraps(verifier)
    def rejection_sample(*args: Any, **kwargs: Any) -> Any:
        drafts, counts, _, _, q, logits, _, sampling = args[:8]
        greedy: Tensor | bool = sampling.all_greedy
        if not sampling.all_greedy and not sampling.all_random:
            cold = sampling.temperature < GREEDY_BELOW
            greedy = cold.repeat_interleave(put(counts, logits.device), output_size=sum(counts))
        step = Step(runner.input_batch.req_ids[: len(counts)].copy(), list(counts), drafts, logits, q, greedy)
        return tap.verify(step, lambda: verifier(*args, **kwargs), lambda output: output)

    _put(rejection_sampler, "rejection_sample", rejection_sample)


def _wrap_v2(tap: Tap) -> None:
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    verifier, call = rejection_sampler.rejection_sample, rejection_sampler.RejectionSampler.__call__
    batch: list[Request] = []  # those of the batch that are not verified yet: it may come in several calls

    @wraps(call)
    def announced(self: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        batch[:] = requests_v2(input_batch, self.sampler.sampling_states.temperature.np)
        return call(self, logits, input_batch, *args, **kwargs)

    @wraps(verifier)
    def rejection_sample(logits: Tensor, q_logits: Tensor | None, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        starts, _, slots, _, _, temperature = args[:6]
        requests, batch[:] = batch[: len(slots)], batch[len(slots) :]
        step = step_v2(logits, q_logits, tokens, starts, slots, temperature, requests)
        return tap.verify(step, lambda: verifier(logits, q_logits, tokens, *args, **kwargs), emitted_v2)

    _put(rejection_sampler, "rejection_sample", rejection_sample)
    _put(rejection_sampler.RejectionSampler, "__call__", announced)


@dataclass(frozen=True)
class Request:
    """What the host knows of a request in V2's batch."""

    name: str
    drafts: int
    temperature: float


def requests_v2(input_batch: Any, temperature: Any) -> list[Request]:
    """The requests of V2's batch, in its order; `temperature` is the host's copy, by their place in vLLM's states."""
    places, starts = input_batch.idx_mapping_np, input_batch.cu_num_logits_np
    columns = zip(input_batch.req_ids, starts[1:] - starts[:-1] - 1, temperature[places], strict=False)
    return [Request(name, int(drafts), float(heat)) for name, drafts, heat in columns]


def step_v2(
    logits: Tensor,
    q_logits: Tensor | None,
    tokens: Tensor,
    starts: Tensor,
    slots: Tensor,
    temperature: Tensor,
    requests: Sequence[Request],
) -> Step:
    """The step of one call of V2's verifier, from its own arguments and what the host knows of its `requests` [B].

    `logits` [N, V] are the target's, row `starts[b] + j` for draft j + 1 of request b, a request's last row for its
    bonus token; `tokens` [N] holds that draft one row further on. `q_logits` [slots, K, V], before temperature, and
    `temperature` [slots] are indexed by `slots` [B]. Of two widths V vLLM takes the smaller: what only one of the
    models has is padding. Waits for nothing on the device.
    """
    width = logits.shape[-1] if q_logits is None else min(logits.shape[-1], q_logits.shape[-1])
    counts = [request.drafts for request in requests]
    each = (starts[1:] - starts[:-1] - 1).long()
    owner = torch.repeat_interleave(each, output_size=sum(counts))
    place = torch.arange(len(owner), device=each.device) - (each.cumsum(0) - each)[owner]
    row = starts[:-1].long()[owner] + place
    slot = slots.long()[owner]
    heat = temperature[slot]
    q = None if q_logits is None else Drafted(q_logits, slot, place, heat, width)
    cold = [request.temperature < GREEDY_BELOW for request in requests if request.drafts]
    greedy = all(cold) if all(cold) or not any(cold) else heat < GREEDY_BELOW
    names = [request.name for request in requests]
    return Step(names, counts, tokens[row + 1], Picked(logits[:, :width], row), q, greedy)


@dataclass(frozen=True)
class Picked:
    """Rows `row` [R] of a table [N, V]."""

    table: Tensor
    row: Tensor

    @property
    def shape(self) -> Sequence[int]:
        return len(self.row), self.table.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.table.device

    def __getitem__(self, part: slice) -> Tensor:
        return self.table[self.row[part]]


@dataclass(frozen=True)
class Drafted:
    """q of R drafts from V2's draft logits [slots, K, at least `width`]: by slot, place and temperature [R]."""

    logits: Tensor
    slot: Tensor
    place: Tensor
    heat: Tensor
    width: int

    @property
    def shape(self) -> Sequence[int]:
        return len(self.slot), self.width

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def __getitem__(self, part: slice) -> Tensor:
        cold = self.logits[self.slot[part], self.place[part]].float()
        return (cold / self.heat[part].clamp(min=GREEDY_BELOW)[:, None]).softmax(-1)[:, : self.width]


def emitted_v2(output: tuple[Tensor, Tensor]) -> Tensor:
    """Tokens [B, K + 1] and how many of each row count [B], as `Told` takes them."""
    sampled, number = output
    beyond = torch.arange(sampled.shape[1], device=sampled.device) >= number[:, None]
    return sampled.masked_fill(beyond, -1)
