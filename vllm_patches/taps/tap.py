"""The one wrapper of the verifier: listeners are told of each verify step, before and after the tokens are chosen.

V1's `rejection_sample` (vllm/v1/sample/rejection_sampler.py) and V2's (vllm/v1/worker/gpu/spec_decode/
rejection_sampler.py) are wrapped in a worker process while somebody listens; when nobody does they are vLLM's own
again. A step is made of the verifier's own arguments and draws no random number: the tokens stay what they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor

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
    """What a verifier is given: B requests with R draft tokens together, rows in the order of the requests."""

    names: list[str]
    """vLLM's own names of the requests [B]."""
    counts: list[int]
    """Drafts of each request [B]."""
    drafts: Tensor
    """[R], -1: no draft."""
    logits: Tensor
    """The target's [R, V], after temperature, top-k and top-p. The verifier may overwrite them."""
    q: Tensor | None
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
            each = torch.tensor(counts, device=logits.device)
            greedy = (sampling.temperature < GREEDY_BELOW).repeat_interleave(each)
        step = Step(runner.input_batch.req_ids[: len(counts)].copy(), list(counts), drafts, logits, q, greedy)
        return tap.verify(step, lambda: verifier(*args, **kwargs), lambda output: output)

    _put(rejection_sampler, "rejection_sample", rejection_sample)


def _wrap_v2(tap: Tap) -> None:
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    verifier, call = rejection_sampler.rejection_sample, rejection_sampler.RejectionSampler.__call__
    names: dict[int, str] = {}  # of the requests in the batch, by their place in vLLM's request states

    @wraps(call)
    def named(self: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        names.clear()
        names.update(zip(input_batch.idx_mapping_np.tolist(), input_batch.req_ids, strict=False))
        return call(self, logits, input_batch, *args, **kwargs)

    @wraps(verifier)
    def rejection_sample(logits: Tensor, q_logits: Tensor | None, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        starts, _, slots, _, _, temperature = args[:6]
        step = step_v2(logits, q_logits, tokens, starts, slots, temperature, names)
        return tap.verify(step, lambda: verifier(logits, q_logits, tokens, *args, **kwargs), emitted_v2)

    _put(rejection_sampler, "rejection_sample", rejection_sample)
    _put(rejection_sampler.RejectionSampler, "__call__", named)


def step_v2(
    logits: Tensor,
    q_logits: Tensor | None,
    tokens: Tensor,
    starts: Tensor,
    slots: Tensor,
    temperature: Tensor,
    names: dict[int, str],
) -> Step:
    """The step of one call of V2's verifier, from its own arguments.

    `logits` [N, V] are the target's, row `starts[b] + j` for draft j + 1 of request b, a request's last row for its
    bonus token; `tokens` [N] holds that draft one row further on. `q_logits` [slots, K, V], before temperature,
    `temperature` [slots] and `names` are indexed by `slots` [B].
    """
    counts = (starts[1:] - starts[:-1] - 1).long()
    owner = torch.repeat_interleave(counts)
    place = torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]
    row = starts[:-1].long()[owner] + place
    slot = slots.long()[owner]
    heat = temperature[slot]
    q = None
    if q_logits is not None:
        q = (q_logits[slot, place].float() / heat.clamp(min=GREEDY_BELOW)[:, None]).softmax(-1)
        q = q[:, : logits.shape[-1]]
    owners = [names[slot] for slot in slots.tolist()]
    return Step(owners, counts.tolist(), tokens[row + 1], logits[row], q, heat < GREEDY_BELOW)


def emitted_v2(output: tuple[Tensor, Tensor]) -> Tensor:
    """Tokens [B, K + 1] and how many of each row count [B], as `Told` takes them."""
    sampled, number = output
    beyond = torch.arange(sampled.shape[1], device=sampled.device) >= number[:, None]
    return sampled.masked_fill(beyond, -1)
