"""What the target's layers say at each token: hidden states of every forward pass, kept until they are drained.

vLLM's own way, the method `extract_hidden_states` with its connector, copies through CUDA streams and pinned memory
(distributed/kv_transfer/kv_connector/v1/example_hidden_states_connector.py), so that it cannot run on a CPU, and it
leaves no room for a look at what it wrote. This is a hook on the loaded model: the normed last state is what its
forward pass returns, the residual stream after inner layers what models that EAGLE-3 drafters exist for return too.

V1 runner, eager mode: a compiled model would not see that other layers are wanted. Each pass waits until its states
are on the host, where they must go in any case: texts are read once, and nothing is timed while they are.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor

FINAL = "final"
"""Name of the normed last state; the residual stream after n layers is called "layer.n"."""


def name_of(layer: int) -> str:
    """What the residual stream after `layer` layers is called."""
    return f"layer.{layer}"


class States:
    """Hidden states of the requests' tokens, in the order of the forward passes."""

    def __init__(self, runner: Any, layers: list[int]) -> None:
        """Raises `NotImplementedError` where they cannot be had."""
        if runner.vllm_config.use_v2_model_runner:
            raise NotImplementedError("hidden states are kept with the V1 runner alone: --runner v1")
        if not runner.model_config.enforce_eager:
            raise NotImplementedError("hidden states are kept in eager mode alone: enforce_eager=true")
        self._runner, self._model, self._layers = runner, runner.get_model(), sorted(set(layers))
        if self._layers:
            from vllm.model_executor.models.interfaces import supports_eagle3

            if not supports_eagle3(self._model):
                raise NotImplementedError(f"{type(self._model).__name__} tells the state of no inner layer in vLLM")
            self._model.set_aux_hidden_state_layers(tuple(self._layers))
        self._scheduled: Any = None
        self._pieces: list[tuple[str, int, int]] = []
        self._values: dict[str, list[Tensor]] = {name: [] for name in (FINAL, *map(name_of, self._layers))}
        self._open()

    def _open(self) -> None:
        execute = self._execute = self._runner.execute_model

        @wraps(execute)
        def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            self._scheduled = scheduled
            try:
                return execute(scheduled, *args, **kwargs)
            finally:
                self._scheduled = None

        self._runner.execute_model = execute_model
        self._hook = self._model.register_forward_hook(self._keep)

    def close(self) -> None:
        """Put the runner and its model back as they were."""
        self._hook.remove()
        self._runner.execute_model = self._execute
        if self._layers:
            self._model.set_aux_hidden_state_layers(())

    def drain(self) -> dict[str, Any]:
        """All since the last call: `pieces` (request, place of its first token, tokens), their states as bytes one
        after another by name, and the `dtype` of these.
        """
        pieces, self._pieces = self._pieces, []
        states = {name: torch.cat(parts) if parts else torch.empty(0) for name, parts in self._values.items()}
        self._values = {name: [] for name in states}
        return {
            "pieces": pieces,
            "dtype": str(states[FINAL].dtype).removeprefix("torch."),
            "values": {name: state.view(torch.uint8).numpy().tobytes() for name, state in states.items()},
        }

    def _keep(self, _: Any, __: Any, output: Any) -> Any:
        """Keep what the model returned, and return what its caller expects: the last state alone."""
        final, inner = output if self._layers and isinstance(output, tuple) else (output, [])
        if self._scheduled is None or not isinstance(final, Tensor):  # a pass of nobody's tokens, an earlier stage
            return final
        batch = self._runner.input_batch
        counts = [self._scheduled.num_scheduled_tokens[name] for name in batch.req_ids]
        starts = batch.num_computed_tokens_cpu[: len(counts)].tolist()
        self._pieces += zip(batch.req_ids, map(int, starts), counts, strict=True)
        for name, state in zip(self._values, (final, *inner), strict=True):
            self._values[name].append(state[: sum(counts)].detach().to("cpu", copy=True))
        return final


OPEN: list[States] = []
"""This worker's, if it keeps any."""


def start(runner: Any, layers: list[int]) -> None:
    """Keep the last state and those after `layers` of every token from now on. Raises `NotImplementedError`."""
    stop()
    OPEN.append(States(runner, layers))


def stop() -> None:
    """Keep none any more."""
    while OPEN:
        OPEN.pop().close()
